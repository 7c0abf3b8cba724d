"""What a save and a resume ask of torch.cuda, answered on a machine without a GPU."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from trainyard_trainer.checkpoint.state import StateFiles, make_state_files
from trainyard_trainer.distributed.process_group import Group

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class Gpu:
    """Stands in for torch.cuda; `calls` lists what was asked, by the names of its functions."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.random = torch.arange(16, dtype=torch.uint8)
        self._empty, self._copy = torch.empty, torch.Tensor.copy_
        for name in ("set_device", "current_stream", "Stream", "stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "get_rng_state", lambda _: self.random.clone())
        patch.setattr(torch.cuda, "set_rng_state", self._set_random)
        patch.setattr(torch, "empty", self._allocate)
        patch.setattr(torch.Tensor, "copy_", lambda *args, **how: self._copied(*args, **how))

    def set_device(self, device: torch.device) -> None:
        self.calls.append((threading.current_thread().name, device))

    def current_stream(self, device: torch.device) -> "Gpu":
        assert device == GPU
        return self

    def record_event(self) -> str:
        self.calls.append("mark")
        return "the mark"

    def Stream(self, device: torch.device) -> "Gpu":
        assert device == GPU
        self.calls.append("new stream")
        return self

    def wait_event(self, event: str) -> None:
        self.calls.append(f"wait for {event}")

    @contextlib.contextmanager
    def stream(self, stream: "Gpu") -> Iterator[None]:
        assert stream is self
        self.calls.append("copies begin")
        yield
        self.calls.append("copies end")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def _set_random(self, state: torch.Tensor, device: torch.device) -> None:
        assert device == GPU
        self.random = state

    def _allocate(self, *args: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
        if pin_memory:
            self.calls.append("pinned")
        return self._empty(*args, **how)

    def _copied(self, *args: Any, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking:
            self.calls.append("copy")
        return self._copy(*args)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def files_on(device: torch.device, sharded: bool) -> StateFiles:
    """The state of a model after one step, as on that device."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return make_state_files(module, optimizer, Group(0, 1, device, None), sharded)
