"""A checkpoint's tensors, and its two formats on disk.

DDP: every rank has the full state, so rank 0 writes it into one safetensors file that any tool can
read. FSDP: every rank has a shard and writes it with torch.distributed.checkpoint, which can also
reshard for another number of ranks. (It could write the full state too, but importing it takes as
long as importing torch, and a restarted run would wait for that.)
"""

import contextlib
import importlib
import io
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainyard_trainer.distributed.parallel import Parallel, canonical_names, local_tensor
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import NonFiniteLossError

STATE_TENSORS = "state.safetensors"
Optimizer = torch.optim.Optimizer
Write = Callable[[Path], None]


def state_of(parallel: Parallel, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state, by names that do not depend on the number of ranks.

    Tied parameters appear once, under the first of their names.
    """
    state = parallel.module.state_dict()
    names = dict.fromkeys(canonical_names(parallel.module).values())
    tensors = {f"model.{name}": state[name] for name in names}
    for name, parameter in parallel.module.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor):  # SGD without momentum has None
                tensors[f"optimizer.{name}.{key}"] = tensor
    return tensors


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that dropout uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _distributed(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded as `like` is."""
    if local_tensor(like) is like:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def own_random_state(group: Group) -> dict[str, Tensor]:
    """This rank's, by the names they have in checkpoints."""
    states = random_state(group.device)
    return {f"rng.{group.rank}.{device}": tensor for device, tensor in states.items()}


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class StateFiles(ABC):
    """Writes and reads the state of one run's ranks."""

    def __init__(self, parallel: Parallel, optimizer: Optimizer) -> None:
        self.parallel = parallel
        self.optimizer = optimizer
        self.group = parallel.group
        # Set once everything that an optimizer step changes has been copied.
        self.copied = threading.Event()
        self.copied.set()

    def preload(self, _background: ThreadPoolExecutor) -> None:
        """Prepare for the first save while training continues."""
        return

    @abstractmethod
    def stage(self) -> Write:
        """Capture the state; the returned function copies and writes it, in the background.

        Both are called on every rank; the directory may not exist yet. The next step's forward and
        backward passes do not change parameters and optimizer state, so they overlap with the copy:
        only the optimizer must wait for `copied`. What a forward pass may change (buffers, random
        states) is copied at once.
        """

    def size(self) -> int:
        """Bytes of the state, all shards together."""
        tensors = state_of(self.parallel, self.optimizer).values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _state(self) -> dict[str, Tensor]:
        """As `state_of`, with the buffers copied."""
        tensors = state_of(self.parallel, self.optimizer)
        for name, _ in self.parallel.module.named_buffers():
            if (key := f"model.{name}") in tensors:  # non-persistent buffers are not saved
                tensors[key] = tensors[key].clone()
        return tensors

    def _check_finite(self, tensors: dict[str, Tensor]) -> None:
        """Raise NonFiniteLossError, on every rank that writes, unless all weights are finite.

        A run resumed from NaN or infinity could not recover.
        """
        finite = all(
            bool(torch.isfinite(torch.stack(torch.aminmax(local_tensor(tensor)))).all())
            for name, tensor in tensors.items()
            if name.startswith("model.")
            and tensor.is_floating_point()
            and local_tensor(tensor).numel()
        )
        if not self._on_all_ranks(finite):
            raise NonFiniteLossError("the weights are not finite")

    def _on_all_ranks(self, holds: bool) -> bool:
        """Whether `holds` is true on every rank that writes; called in the background."""
        return holds

    def read(self, directory: Path, *, optimizer: bool, random: bool) -> None:
        """Load a saved state, of either format; with these parts of it beside the weights."""
        path = directory / STATE_TENSORS
        full = self.group.broadcast(path.exists())  # rank 0's answer: others need not see it
        states = self._read_full(path) if full else self._read_sharded(directory, optimizer, random)
        if full:
            self._assign(states, optimizer)
        if random:
            prefix = f"rng.{self.group.rank}."
            own = {k.removeprefix(prefix): v for k, v in states.items() if k.startswith(prefix)}
            set_random_state(own, self.group.device)

    def _read_full(self, path: Path) -> dict[str, Tensor]:
        """The tensors of one safetensors file, which rank 0 reads, on every rank."""
        from safetensors.torch import load_file

        saved = load_file(path) if self.group.is_main else {}
        shapes = self.group.broadcast({name: (t.shape, t.dtype) for name, t in saved.items()})
        for name, (shape, dtype) in shapes.items():
            tensor = saved.setdefault(name, torch.empty(shape, dtype=dtype))
            self.group.broadcast_tensor(tensor)
        return saved

    @torch.no_grad()
    def _assign(self, saved: dict[str, Tensor], optimizer: bool) -> None:
        """Copy full tensors into the state; of sharded ones each rank takes its part."""
        for name, tensor in saved.items():
            if optimizer and name.startswith("optimizer."):
                self._allocate_optimizer_state(name, tensor.shape, tensor.dtype)
        for name, tensor in state_of(self.parallel, self.optimizer).items():
            full = saved[name]
            if full.shape != tensor.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(full.shape)}, in this model {tuple(tensor.shape)}"
                )
            tensor.copy_(_distributed(full, like=tensor))

    def _read_sharded(self, directory: Path, optimizer: bool, random: bool) -> dict[str, Tensor]:
        """Load the files of all ranks, resharded; returns what was loaded."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(directory)
        for name, entry in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata) or not optimizer:
                continue
            if name.startswith("optimizer."):
                self._allocate_optimizer_state(name, entry.size, entry.properties.dtype)
        state = state_of(self.parallel, self.optimizer)
        if random:
            state |= own_random_state(self.group)
        load(state, storage_reader=reader, process_group=self.group.background)
        return state

    def close(self) -> None:
        """Release what writing needed."""
        return

    def _allocate_optimizer_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> None:
        """Allocate the state tensor `optimizer.PARAMETER.KEY` in a new optimizer."""
        path, _, key = name.removeprefix("optimizer.").rpartition(".")
        parameter = self.parallel.module.get_parameter(path)
        self.optimizer.state[parameter][key] = (
            torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            if size == parameter.shape
            else torch.zeros(size, dtype=dtype, device=parameter.device)  # as fused optimizers do
        )


class FullState(StateFiles):
    """One file, written and read by rank 0; the other nodes need no access to it."""

    def __init__(self, parallel: Parallel, optimizer: Optimizer) -> None:
        super().__init__(parallel, optimizer)
        self._copies: dict[str, Tensor] = {}

    def stage(self) -> Write:
        random = self.group.gather(random_state(self.group.device))
        if not self.group.is_main:
            return lambda _: None
        state = self._state()
        self.copied.clear()
        on_gpu = self.group.device.type == "cuda"
        ready = torch.cuda.current_stream().record_event() if on_gpu else None

        def write(directory: Path) -> None:
            from safetensors.torch import save_file

            tensors = self._copy(state, ready)
            self.copied.set()
            self._check_finite(tensors)
            for rank, states in enumerate(random):
                tensors |= {f"rng.{rank}.{device}": tensor for device, tensor in states.items()}
            directory.mkdir(exist_ok=True)
            save_file(tensors, directory / STATE_TENSORS)

        return write

    @torch.no_grad()
    def _copy(self, state: dict[str, Tensor], ready: torch.cuda.Event | None) -> dict[str, Tensor]:
        """The state on the CPU, in buffers reused for every save: allocation costs more than the
        copy. From a GPU on a side stream, once the work before `ready` is done."""
        for name, tensor in state.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=ready is not None
                )
        if ready is None:
            for name, tensor in state.items():
                self._copies[name].copy_(tensor)
        else:
            stream = torch.cuda.Stream(self.group.device)  # type: ignore[no-untyped-call]
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                for name, tensor in state.items():
                    self._copies[name].copy_(tensor, non_blocking=True)
            stream.synchronize()
        return dict(self._copies)


class ShardedState(StateFiles):
    """One file per rank, in the format of torch.distributed.checkpoint."""

    _imports: Future[Any] | None = None
    _stager: Any = None

    def preload(self, background: ThreadPoolExecutor) -> None:
        self._imports = background.submit(
            importlib.import_module, "torch.distributed.checkpoint.state_dict_saver"
        )

    def stage(self) -> Write:
        if self._imports is not None:
            self._imports.result()  # two threads must not import the same package at once
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        from torch.distributed.checkpoint.state_dict_saver import save

        if self._stager is None:
            self._stager = DefaultStager(StagingOptions(False, False, False, False))
        state = self._state() | own_random_state(self.group)
        self.copied.clear()

        def write(directory: Path) -> None:
            staged = self._stager.stage(state)
            self.copied.set()
            self._check_finite(staged)
            save(staged, storage_writer=_writer(directory), process_group=self.group.background)

        return write

    def _on_all_ranks(self, holds: bool) -> bool:
        if self.group.background is None:
            return holds
        votes = torch.tensor(int(holds))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.group.background)
        return bool(votes)

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()


class _File(io.BufferedWriter):
    """A file that torch may flush after it is closed."""

    def flush(self) -> None:
        if not self.closed:
            super().flush()


def _writer(directory: Path) -> Any:
    """torch's FileSystemWriter, without a traceback on stderr when a write has failed.

    It writes through a wrapper of the file that it leaves to the garbage collector then; the
    wrapper's end flushes the file, which is closed by that time. From Python 3.13 on an exception
    in the end of a file object is printed.
    """
    from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

    class Files(FileSystem):
        @contextlib.contextmanager
        def create_stream(
            self, path: str | os.PathLike[str], mode: str
        ) -> Generator[io.IOBase, None, None]:
            with _File(io.FileIO(path, mode)) as stream:
                yield stream

    writer = FileSystemWriter(directory)
    writer.fs = Files()
    return writer


def make_state_files(parallel: Parallel, optimizer: Optimizer) -> StateFiles:
    """The format for the strategy."""
    cls = ShardedState if parallel.strategy == "fsdp" else FullState
    return cls(parallel, optimizer)
