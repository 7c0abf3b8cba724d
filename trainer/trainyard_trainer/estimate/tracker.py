"""Follows which tensors are alive, and of which part they are when the memory is at its peak."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = Literal["parameters", "gradients", "optimizer", "activations", "logits", "communication"]
# Operators of FSDP and of the process group: what they read and write are buffers of theirs.
_COMMUNICATION = ("fsdp", "c10d", "_c10d_functional")


class _Block:
    """The memory of one storage."""

    def __init__(self, size: int, part: Part) -> None:
        self.size = size
        self.part = part


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operators make, as long as they are alive.

    Attributes:
        part: what new storages belong to, unless they are named otherwise.
        peak: bytes of each part at the moment when they were most in all.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part: Part = "activations"
        self.peak: Counter[Part] = Counter()
        self._now: Counter[Part] = Counter()
        self._blocks: dict[int, _Block] = {}  # by the address of the C++ storage

    def __enter__(self) -> Self:
        # FSDP frees what it has gathered by resizing it, which no operator does.
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            self._resize(storage, size)
            self._track(storage, "communication")
            return storage

        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # what it does with its local tensors is seen
        result = func(*args, **(kwargs or {}))
        if func.namespace in _COMMUNICATION:
            for storage in _storages((args, kwargs, result)):
                block = self._blocks.get(storage._cdata)
                if block is None or block.part == "activations":
                    self._track(storage, "communication")
        else:
            for storage in _storages(result):
                self._track(storage)
        return result

    def assign(self, tensors: Iterable[Tensor | None], part: Part) -> None:
        """Name the part that the storages of these tensors belong to."""
        for storage in _storages(list(tensors)):
            self._track(storage, part)

    @contextmanager
    def allocating(self, part: Part) -> Iterator[None]:
        """New storages belong to this part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def live(self) -> Counter[Part]:
        """Bytes of each part now."""
        return Counter(self._now)

    def start_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live()

    def rename(self, old: Part, new: Part) -> None:
        """All that is alive of one part belongs to another from now on."""
        for block in self._blocks.values():
            if block.part == old:
                block.part = new
        self._now[new] += self._now.pop(old, 0)

    def _track(self, storage: torch.UntypedStorage, part: Part | None = None) -> None:
        key, size = storage._cdata, storage.nbytes()
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block(0, part or self.part)
            weakref.finalize(storage, self._free, key)
        if part is None:
            part = block.part
        if (size, part) != (block.size, block.part):
            self._now[block.part] -= block.size
            self._now[part] += size
            block.size, block.part = size, part
            if self._now.total() > self.peak.total():
                self.peak = self.live()

    def _free(self, key: int) -> None:
        block = self._blocks.pop(key)
        self._now[block.part] -= block.size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            local = leaf.to_local() if hasattr(leaf, "to_local") else leaf
            yield local.untyped_storage()
