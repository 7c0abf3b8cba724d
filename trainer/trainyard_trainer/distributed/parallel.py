"""DDP and FSDP2, mixed precision, and the operations that depend on them.

DDP keeps the whole model on every rank and averages gradients while the backward pass runs.
FSDP2 (fully_shard) keeps a slice of every parameter, gradient and optimizer state per rank and
gathers a block's parameters just before they are used.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from trainyard_api.spec import Precision, Strategy
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed.buckets import fix_buckets
from trainyard_trainer.distributed.compiler import Compiler
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.distributed.step_timer import StepTimer, watch_ddp, watch_fsdp
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LossScaler:
    """Loss scaling, which keeps fp16 gradients from underflow; no effect in other precisions.

    A dynamic scale (Micikevicius et al., 2018), adapted by the global gradient norm, which is the
    same on every rank: one rank's overflow skips the step on all, under FSDP too.
    """

    GROWTH_STEPS = 2000
    MIN_SCALE = 2.0**-10  # an overflow at this scale means that the gradient is NaN or infinite

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = 2.0**16 if enabled else 1.0
        self.good_steps = 0

    def update(self, norm: torch.Tensor) -> bool:
        """Adapt the scale to this step's gradient norm; False if the step must be skipped."""
        if not self.enabled:
            return True
        if not bool(torch.isfinite(norm)):
            self.scale, self.good_steps = self.scale / 2, 0
            return False
        self.good_steps += 1
        if self.good_steps == self.GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether steps overflow at every scale."""
        return self.scale < self.MIN_SCALE

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])


class Parallel:
    """A model, replicated or sharded over the ranks of `group`.

    Attributes:
        module: the unwrapped model, for evaluation, checkpoints and export.
        model: what training calls; the same module, or DDP around it.
        timer: times the steps, and the waits for other ranks in them.
        measures_waiting: whether those waits can be measured.
        compiler: of the blocks, or the whole model; None in eager mode.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Iterable[nn.Module],
        group: Group,
        strategy: Strategy,
        precision: Precision,
        config: TrainConfig,
        parts: Mapping[str, tuple[object, str]] | None = None,
    ) -> None:
        """`blocks`, `parts`: see Recipe. Raises ConfigError if `config` can't be followed."""
        self.group = group
        self.strategy = strategy
        self.dtype = COMPUTE_DTYPE[precision]
        self.scaler = LossScaler(enabled=precision == "fp16")
        self.timer = StepTimer(group.device)
        self.measures_waiting = True
        allow_tf32(group.device, precision)
        self.compiler = Compiler(group.device) if config.compile else None
        # Training mode: transformers loads pretrained models in evaluation mode.
        self.module = module.to(group.device).train()
        self.model: nn.Module = self.module
        blocks = list(blocks)
        if config.activation_checkpointing:
            if not blocks:
                raise ConfigError(
                    "config.activation_checkpointing: the recipe names no blocks of its model; set"
                    " it to false"
                )
            for block in blocks:
                _add_activation_checkpointing(block)
        if self.compiler and blocks:
            self.compiler.compile_blocks(blocks)
            for name, (owner, method) in (parts or {}).items():
                self.compiler.compile(name, owner, method)
        elif self.compiler:
            self.compiler.compile("the model", self.module, "forward")
        if strategy == "fsdp":
            self._shard(blocks, reshard_after_forward=config.sharding_strategy == "FULL_SHARD")
            self.measures_waiting = watch_fsdp(self.module, self.timer)
        elif group.world_size > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.module,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
            fix_buckets(self.model)
            watch_ddp(self.model, self.timer)

    def _shard(self, blocks: Iterable[nn.Module], reshard_after_forward: bool) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = self.make_mesh()
        # Gradients are reduced in fp32 in every precision: rounding must not grow with the number
        # of ranks.
        policy = MixedPrecisionPolicy(
            param_dtype=None if self.dtype == torch.float32 else self.dtype,
            reduce_dtype=torch.float32,
        )
        for block in blocks:
            fully_shard(
                block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward
            )
        fully_shard(
            self.module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward
        )

    def make_mesh(self) -> "DeviceMesh":
        """The ranks among which FSDP shards."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.group.device.type, (self.group.world_size,))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to the run's precision; FSDP casts parameters itself."""
        if self.dtype == torch.float32 or self.strategy == "fsdp":
            return contextlib.nullcontext()
        return torch.autocast(self.group.device.type, dtype=self.dtype)

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Any:
        """Reduce gradients only in the last micro-batch of a step."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
        else:
            if self.strategy == "fsdp":
                cast(Any, self.model).set_requires_gradient_sync(last)
            yield
        self.timer.wait_ends()  # DDP has reduced the gradients

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Unscale and clip the gradients; their global norm before clipping, a 0-d tensor."""
        from torch.nn.utils import clip_grads_with_norm_, get_total_norm

        parameters = [p for p in self.module.parameters() if p.grad is not None]
        gradients = [cast(torch.Tensor, p.grad) for p in parameters]
        if self.scaler.scale != 1:
            torch._foreach_mul_(gradients, 1 / self.scaler.scale)
        norm = get_total_norm(gradients)
        if self.strategy == "fsdp":
            self.timer.wait_begins()
            norm = cast(Any, norm).full_tensor()
            self.timer.wait_ends()
        if max_norm > 0:
            clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def full_weights(self) -> dict[str, torch.Tensor]:
        """The full weights on the CPU, gathered from all ranks; empty on every rank but 0."""
        state, weights = self.module.state_dict(), {}
        for name, first in canonical_names(self.module).items():
            if name == first:
                full = full_tensor(state[name])
                if self.group.is_main:
                    weights[name] = full.cpu()
            elif self.group.is_main:
                weights[name] = weights[first]
        return weights


def canonical_names(module: nn.Module) -> dict[str, str]:
    """For every name in the module's state, the first name of the same tensor.

    They differ for tied parameters, such as an output layer that is the token embedding.
    """
    state, first = module.state_dict(keep_vars=True), dict[int, str]()
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of one that FSDP may have sharded; a collective call."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that FSDP may have sharded."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def allow_tf32(device: torch.device, precision: Precision) -> None:
    """Let a GPU round the factors of fp32 matrix products to TF32, whose 10 bits its tensor cores
    take, several times as fast as fp32; sums stay in fp32. Not if the run is to be deterministic.
    """
    exact = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda" and precision == "fp32" and not exact:
        torch.set_float32_matmul_precision("high")


def _add_activation_checkpointing(block: nn.Module) -> None:
    """Keep only a block's inputs for the backward pass (Chen et al., 2016).

    The random state is restored for the second forward pass, so dropout is the same.
    """
    from torch.utils.checkpoint import checkpoint

    forward = block.forward

    # A plain function: torch.compile may leave a functools.partial eager, without a word.
    @functools.wraps(forward)
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputing
