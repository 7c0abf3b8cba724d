"""Runs a training step with fake tensors, which have shapes and no values, and tells its memory.

The step is the trainer's: the same model, sharded, trained and updated in the same way. Only
DistributedDataParallel, whose C++ part reads tensors, is replaced by what it allocates.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._pytree import tree_leaves

from trainyard_api.spec import Precision, Strategy
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.sampling import Batch
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.estimate.tracker import MemoryTracker, Part
from trainyard_trainer.optim import build_optimizer
from trainyard_trainer.recipes.base import LOSS, Recipe

STEPS = 2  # from the second one on, the optimizer's state exists before the forward pass


@dataclass(frozen=True)
class Setup:
    """What determines the memory of a rank, beside the recipe's data."""

    config: TrainConfig
    strategy: Strategy
    precision: Precision
    world_size: int

    @property
    def micro_batch(self) -> int:
        """Samples of one rank in one forward pass."""
        return self.config.batch_size // (self.world_size * self.config.gradient_accumulation_steps)


def peak_memory(recipe: Recipe, setup: Setup) -> Counter[Part]:
    """Bytes of each part at the peak of a training step, on one rank."""
    samples = np.arange(setup.micro_batch, dtype=np.int64) % len(recipe.train)
    batch = recipe.train.fetch(samples, np.zeros(setup.micro_batch, np.uint64))
    with (
        _ranks(setup.world_size) as mesh,
        _nothing_moves(),
        FakeTensorMode(allow_non_fake_inputs=True),
        MemoryTracker() as tracker,
    ):
        _FakeRank(recipe, setup, mesh, tracker).train(batch)
        return tracker.peak


@contextmanager
def _ranks(world_size: int) -> Iterator[DeviceMesh]:
    """A process group that has no other processes."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        dist.destroy_process_group()


@contextmanager
def _nothing_moves() -> Iterator[None]:
    """Modules of fake tensors are where they belong; torch can't move them."""
    original = nn.Module.to
    nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.to = original  # type: ignore[method-assign]


class _FakeParallel(Parallel):
    """Of the ranks, only their number is real."""

    def __init__(self, mesh: DeviceMesh, *args: Any) -> None:
        self._mesh = mesh
        super().__init__(*args)

    def make_mesh(self) -> DeviceMesh:
        return self._mesh


class _FakeRank:
    """One rank's model and optimizer, of fake tensors."""

    def __init__(
        self, recipe: Recipe, setup: Setup, mesh: DeviceMesh, tracker: MemoryTracker
    ) -> None:
        self.recipe, self.config, self.tracker = recipe, setup.config, tracker
        sharded = setup.strategy == "fsdp"
        # For a group of one, Parallel leaves DistributedDataParallel out.
        group = Group(0, setup.world_size if sharded else 1, torch.device("cpu"), None)
        module = recipe.build()
        blocks = recipe.blocks(module)
        if LOSS in (parts := recipe.parts(module)):
            owner, method = parts[LOSS]
            setattr(owner, method, self._as_logits(getattr(owner, method)))
        self.parallel = _FakeParallel(
            mesh, module, blocks, group, setup.strategy, setup.precision, setup.config
        )
        self.module = self.parallel.module
        self.module.register_forward_hook(self._forward_done)
        self.optimizer = build_optimizer(self.module, setup.config)
        self.synchronise = False
        if not sharded:
            self._watch_gradients(buckets=setup.world_size > 1)

    def train(self, batch: Batch) -> None:
        """Train some steps; afterwards the tracker has the peak of the last one."""
        for _ in range(STEPS):
            self.tracker.assign(self.module.state_dict(keep_vars=True).values(), "parameters")
            self.tracker.assign(self.module.buffers(), "parameters")
            for state in self.optimizer.state.values():
                self.tracker.assign(state.values(), "optimizer")
            self.tracker.start_peak()
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        """As Loop._train_step; a third micro-batch would be like the second."""
        count = min(2, self.config.gradient_accumulation_steps)
        for micro in range(count):
            self.synchronise = micro == count - 1
            fake = {
                name: torch.empty_strided(each.shape, each.stride(), dtype=each.dtype)
                for name, each in batch.items()
            }
            with self.parallel.accumulate(last=self.synchronise):
                with self.parallel.autocast():
                    loss = self.recipe.loss(self.parallel.model, fake)
                torch.autograd.backward(loss * 1.0)
            # The batch and the loss stay until the next ones are there.
            self.tracker.part = "activations"
            self.tracker.rename("activations", "gradients")
        self.parallel.clip_gradients(self.config.max_grad_norm)
        with self.tracker.allocating("optimizer"):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _as_logits(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """What a function allocates belongs to the logits."""

        def counted(*args: Any) -> Any:
            with self.tracker.allocating("logits"):
                return loss(*args)

        return counted

    def _forward_done(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """After the model's forward pass comes the loss, until its gradient has come back."""
        logits = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        self.tracker.assign(logits, "logits")
        self.tracker.part = "logits"
        for tensor in logits:
            tensor.register_hook(self._loss_differentiated)  # type: ignore[no-untyped-call]

    def _loss_differentiated(self, _gradient: Tensor) -> None:
        self.tracker.part = "activations"

    def _watch_gradients(self, buckets: bool) -> None:
        """Know gradients as such when they are ready, and put them where DDP has them.

        DDP's buckets exist all the time. A gradient moves into its bucket when the last micro-batch
        has made it; those of micro-batches before lie beside the buckets until then.
        """
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                continue
            place = torch.empty_like(parameter, requires_grad=False) if buckets else None
            self.tracker.assign([place], "communication")

            def ready(parameter: Tensor, place: Tensor | None = place) -> None:
                if place is not None and self.synchronise:
                    parameter.grad = place
                else:
                    self.tracker.assign([parameter.grad], "gradients")

            cast(Any, parameter).register_post_accumulate_grad_hook(ready)
