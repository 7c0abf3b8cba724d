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
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard_trainer.checkpoint.random_state import (
    own_random_state,
    prefix,
    random_state,
    set_random_state,
)
from trainyard_trainer.checkpoint.staging import Staging
from trainyard_trainer.distributed.parallel import canonical_names, local_tensor
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import NonFiniteLossError

STATE_TENSORS = "state.safetensors"
OTHERS = "others."  # with it begin the names of tensors that are of neither model nor optimizer
Optimizer = torch.optim.Optimizer
Write = Callable[[Path], None]


def state_of(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state, by names that do not depend on the number of ranks.

    Tied parameters appear once, under the first of their names.
    """
    state = module.state_dict()
    names = dict.fromkeys(canonical_names(module).values())
    tensors = {f"model.{name}": state[name] for name in names}
    for name, parameter in module.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if isinstance(tensor, Tensor):  # SGD without momentum has None
                tensors[f"optimizer.{name}.{key}"] = tensor
    return tensors


def _distributed(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, on the device of `like` and sharded as that is."""
    if local_tensor(like) is like:
        return full.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


class StateFiles(ABC):
    """Writes and reads the state of one run's ranks.

    Attributes:
        module: the unwrapped model, whose parameters FSDP2 may have sharded.
        others: further tensors that a save includes, by names that begin with OTHERS: replicated
            or sharded like the model's.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, group: Group) -> None:
        self.module = module
        self.optimizer = optimizer
        self.group = group
        self.others: dict[str, Tensor] = {}
        self._staging = Staging(group.device)
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
        tensors = state_of(self.module, self.optimizer) | self.others
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def _state(self) -> dict[str, Tensor]:
        """As `state_of`, with the buffers copied, and `others`."""
        tensors = state_of(self.module, self.optimizer)
        for name, _ in self.module.named_buffers():
            if (key := f"model.{name}") in tensors:  # non-persistent buffers are not saved
                tensors[key] = tensors[key].clone()
        return tensors | self.others

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

    def read(self, directory: Path, *, optimizer: bool, random: bool) -> dict[str, Tensor]:
        """Load a saved state, of either format; with these parts of it beside the weights.

        Returns what was loaded, `others` included; the random states are not set yet: see
        `set_random`.
        """
        path = directory / STATE_TENSORS
        full = self.group.broadcast(path.exists())  # rank 0's answer: others need not see it
        if not full:
            return self._read_sharded(directory, optimizer, random)
        states = self._read_full(path)
        self._assign(states, optimizer)
        layouts = {name: like for name, like in self.others.items() if name in states}
        return states | {
            name: _distributed(states[name], like)
            for name, like in layouts.items()
            if like.shape == states[name].shape
        }

    def _own(self, optimizer: bool) -> dict[str, Tensor]:
        """What there is to load: as `state_of`; without `optimizer` the model's alone."""
        state = state_of(self.module, self.optimizer)
        return {name: t for name, t in state.items() if optimizer or name.startswith("model.")}

    def _check(self, saved: Mapping[str, torch.Size], optimizer: bool) -> None:
        """Raise ValueError unless `saved`, shapes by name, is of this model."""
        own = self._own(optimizer)
        for name, tensor in own.items():
            if name not in saved:
                raise ValueError(f"it has no {name}")
            if saved[name] != tensor.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(saved[name])}, in this model"
                    f" {tuple(tensor.shape)}"
                )
        for name in saved:
            if name.startswith("model.") and name not in own:
                raise ValueError(f"it has {name}, which this model does not have")

    def set_random(self, states: dict[str, Tensor]) -> bool:
        """Set this rank's random generators to the states that `read` has returned.

        False, and nothing is set, if they were saved on another kind of device.
        """
        return set_random_state(states, self.group)

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
        self._check({name: tensor.shape for name, tensor in saved.items()}, optimizer)
        for name, tensor in saved.items():
            if optimizer and name.startswith("optimizer."):
                self._allocate_optimizer_state(name, tensor.shape, tensor.dtype)
        for name, tensor in self._own(optimizer).items():
            tensor.copy_(_distributed(saved[name], like=tensor))

    def _read_sharded(self, directory: Path, optimizer: bool, random: bool) -> dict[str, Tensor]:
        """Load the files of all ranks, resharded; returns what was loaded."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        reader, others = FileSystemReader(directory), dict[str, Tensor]()
        metadata = reader.read_metadata().state_dict_metadata
        saved = {k: v for k, v in metadata.items() if isinstance(v, TensorStorageMetadata)}
        self._check({name: entry.size for name, entry in saved.items()}, optimizer)
        for name, entry in saved.items():
            if name.startswith("optimizer.") and optimizer:
                self._allocate_optimizer_state(name, entry.size, entry.properties.dtype)
            if name.startswith(OTHERS):
                like = self.others.get(name)
                sharded = like is not None and like.shape == entry.size
                others[name] = (
                    torch.empty_like(like)
                    if like is not None and sharded
                    else torch.empty(entry.size, dtype=entry.properties.dtype)
                )
            if name.startswith(prefix(self.group.rank)) and random:
                others[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        state = self._own(optimizer) | others
        load(state, storage_reader=reader, process_group=self.group.background)
        return state

    def _allocate_optimizer_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> None:
        """Allocate the state tensor `optimizer.PARAMETER.KEY` in a new optimizer."""
        path, _, key = name.removeprefix("optimizer.").rpartition(".")
        parameter = self.module.get_parameter(path)
        if size == parameter.shape and key != "step":
            value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:
            value = torch.zeros(size, dtype=dtype, device=self._device_of(key, parameter))
        self.optimizer.state[parameter][key] = value

    def _device_of(self, key: str, parameter: Tensor) -> torch.device:
        """Where an optimizer keeps state of another shape: as its load_state_dict decides."""
        for group in self.optimizer.param_groups:
            if key == "step" and any(each is parameter for each in group["params"]):
                on_gpu = group.get("fused") or group.get("capturable")
                return parameter.device if on_gpu else torch.device("cpu")
        return parameter.device


class FullState(StateFiles):
    """One file, written and read by rank 0; the other nodes need no access to it."""

    def stage(self) -> Write:
        random = self.group.gather(random_state(self.group.device))
        if not self.group.is_main:
            return lambda _: None
        state = self._state()
        self.copied.clear()
        ready = self._staging.mark()

        def write(directory: Path) -> None:
            from safetensors.torch import save_file

            tensors = self._staging.copy(state, ready)
            self.copied.set()
            self._check_finite(tensors)
            for rank, states in enumerate(random):
                tensors |= {f"rng.{rank}.{device}": tensor for device, tensor in states.items()}
            directory.mkdir(exist_ok=True)
            save_file(tensors, directory / STATE_TENSORS)

        return write


class ShardedState(StateFiles):
    """One file per rank, in the format of torch.distributed.checkpoint."""

    _imports: Future[Any] | None = None

    def preload(self, background: ThreadPoolExecutor) -> None:
        self._imports = background.submit(
            importlib.import_module, "torch.distributed.checkpoint.state_dict_saver"
        )

    def stage(self) -> Write:
        if self._imports is not None:
            self._imports.result()  # two threads must not import the same package at once
        from torch.distributed.checkpoint.state_dict_saver import save

        state = self._state() | own_random_state(self.group)
        shards = {name: local_tensor(tensor) for name, tensor in state.items()}
        self.copied.clear()
        ready = self._staging.mark()

        def write(directory: Path) -> None:
            copies = self._staging.copy(shards, ready)
            self.copied.set()
            self._check_finite(copies)
            save(
                state,
                storage_writer=_writer(directory),
                planner=_planner(copies),
                process_group=self.group.background,
            )

        return write

    def _on_all_ranks(self, holds: bool) -> bool:
        if self.group.background is None:
            return holds
        votes = torch.tensor(int(holds))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.group.background)
        return bool(votes)


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


def _planner(copies: Mapping[str, Tensor]) -> Any:
    """torch's DefaultSavePlanner, for a state of which each rank has copied its part.

    The state says what is where; it is trained on, so what is written are the copies.
    """
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    class Planner(DefaultSavePlanner):
        def lookup_object(self, index: Any) -> Tensor:
            return copies[index.fqn]

    return Planner()


def make_state_files(
    module: nn.Module, optimizer: Optimizer, group: Group, sharded: bool
) -> StateFiles:
    """One file, or one for each rank where the model is `sharded`."""
    cls = ShardedState if sharded else FullState
    return cls(module, optimizer, group)
