"""A script's model as a checkpoint sees it: unwrapped, and the group of its ranks."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn

from trainyard_trainer.distributed.buckets import fix_buckets
from trainyard_trainer.distributed.parallel import local_tensor
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import ConfigError


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile. Raises ConfigError."""
    wrapped: object = model
    while isinstance(wrapped, nn.Module):
        model = wrapped
        parallel = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        wrapped = model.module if parallel else getattr(model, "_orig_mod", None)
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise ConfigError(
                "model: FullyShardedDataParallel (FSDP1) is not supported: shard it with"
                " torch.distributed.fsdp.fully_shard"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ConfigError(
                f"model: {name or type(module).__name__} has an extra state (get_extra_state),"
                " which can't be saved: keep it in buffers"
            )
    return model


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold slices of the parameters (FSDP2, or other DTensors)."""
    return any(local_tensor(each) is not each for each in module.parameters())


def fix_all_buckets(*trained: object) -> None:
    """Fix the buckets of every DistributedDataParallel in them. A collective call."""
    for each in trained:
        for module in each.modules() if isinstance(each, nn.Module) else ():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                fix_buckets(module)


def group_of(module: nn.Module) -> Group:
    """The ranks that train it: all of torch.distributed, or this process. A collective call."""
    parameter = next(module.parameters(), torch.empty(0))
    device = local_tensor(parameter).device
    if dist.is_available() and dist.is_initialized():
        background = dist.new_group(backend="gloo")
        assert isinstance(background, dist.ProcessGroup)  # every rank is a member
        return Group(dist.get_rank(), dist.get_world_size(), device, background)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        raise ConfigError(
            f"torchrun has started {world_size} ranks: call"
            " torch.distributed.init_process_group() before trainyard.Checkpointer(...)"
        )
    return Group(0, 1, device, None)
