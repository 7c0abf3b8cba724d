"""Batches do not depend on the number of workers or on the step a run resumes from."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.loader import Loader, MicroBatches
from trainyard_trainer.data.sampling import Batch, Ids, Noise, Weights, epoch_ended
from trainyard_trainer.data.tokens import Tokens, Windows
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import ConfigError

PR_GET_PDEATHSIG = 2


class Numbers:
    """Samples that are their own ids and noise."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 100

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        if self.broken in ids:
            raise ConfigError(f"sample {self.broken} can't be read")
        return {"ids": torch.from_numpy(ids), "noise": torch.from_numpy(noise.view("int64"))}


def pairs(
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    samples: Any = None,
    weights: Callable[[Ids], Weights | None] = lambda _: None,
    **config: Any,
) -> list[tuple[Batch, float]]:
    """Every batch of a rank, with its loss's factor."""
    settings = TrainConfig(max_steps=12, batch_size=12, **config)
    group = Group(rank, world_size, torch.device("cpu"), None)
    loader = Loader(samples or Numbers(), MicroBatches(settings, 5, 100, weights, group, start))
    count = (12 - start) * settings.gradient_accumulation_steps
    return [next(loader) for _ in range(count)]


def loader_of(workers: int, steps: int) -> Loader:
    settings = TrainConfig(max_steps=steps, batch_size=12, dataloader_num_workers=workers)
    group = Group(0, 1, torch.device("cpu"), None)
    return Loader(Numbers(), MicroBatches(settings, 5, 100, lambda _: None, group, 0))


def batches(*args: Any, **options: Any) -> list[Batch]:
    return [batch for batch, _ in pairs(*args, **options)]


def stacked(found: list[Batch], key: str) -> list[list[int]]:
    return [batch[key].tolist() for batch in found]


@pytest.mark.parametrize("key", ["ids", "noise"])
def test_workers_and_restarts_change_nothing(key: str) -> None:
    state = torch.get_rng_state()
    whole = stacked(batches(), key)
    assert stacked(batches(dataloader_num_workers=2), key) == whole
    assert stacked(batches(dataloader_num_workers=2, start=7), key) == whole[7:]
    assert stacked(batches(start=7), key) == whole[7:]
    # The loader must not draw from the generator that dropout uses.
    assert torch.equal(torch.get_rng_state(), state)


class Stream:
    """A stream of a GPU, which notes its work."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def record_event(self) -> str:
        self.notes.append(f"{self.name} records")
        return f"the event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")


class Slices(Numbers):
    """Inputs and targets as views of the same memory, and then the end."""

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        both = super().fetch(ids, noise)["ids"][:, None] + torch.arange(3)
        return {"ids": both[:, :-1], "targets": both[:, 1:]}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU would be asked to do; its memory is the CPU's."""
    notes: list[str] = []
    copying, computing = Stream("copying", notes), Stream("computing", notes)
    active = [computing]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        active.append(stream)
        yield
        active.pop()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_contiguous()
        notes.append("pins")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        assert non_blocking
        notes.append(f"{active[-1].name} copies")
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: copying)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: active[-1])
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: notes.append(f"kept for {stream.name}")
    )
    return notes


def test_a_gpu_copies_one_batch_ahead_beside_the_computation(gpu: list[str]) -> None:
    settings = TrainConfig(max_steps=2, batch_size=12)
    group = Group(0, 1, torch.device("cuda", 0), None)
    loader = Loader(Slices(), MicroBatches(settings, 5, 100, lambda _: None, group, 0))
    copied = ["pins", "copying copies"] * 2 + ["copying records"]
    taken = ["computing waits for the event of copying"] + ["kept for computing"] * 2
    first, _ = next(loader)
    assert gpu == copied + taken
    loader.prefetch()
    loader.prefetch()  # it is ready
    assert gpu == copied + taken + copied
    second, _ = next(loader)
    assert gpu == 2 * (copied + taken)
    loader.prefetch()  # the end, which only `next` shows
    with pytest.raises(StopIteration):
        next(loader)
    found = [first["ids"][:, 0], second["ids"][:, 0]]
    assert [each.tolist() for each in found] == stacked(batches(), "ids")[:2]
    assert loader.seconds > 0


def test_a_cpu_has_the_batches_that_were_fetched() -> None:
    """Neither copied nor fetched ahead: it would compute no earlier."""
    fetched: list[Batch] = []

    class Noted(Slices):
        def fetch(self, ids: Ids, noise: Noise) -> Batch:
            fetched.append(super().fetch(ids, noise))
            return fetched[-1]

    settings = TrainConfig(max_steps=2, batch_size=12)
    group = Group(0, 1, torch.device("cpu"), None)
    loader = Loader(Noted(), MicroBatches(settings, 5, 100, lambda _: None, group, 0))
    batch, _ = next(loader)
    loader.prefetch()
    assert len(fetched) == 1
    assert batch is fetched[0]


def test_windows_are_contiguous() -> None:
    ids = np.arange(100, dtype=np.uint16)
    for parts in ([ids], [ids[:26], ids[26:26], ids[26:28], ids[28:]]):
        batch = Windows(Tokens(parts), 8, 8, 0, 100).fetch(np.array([3, 0]), np.zeros(2, np.uint64))
        assert batch["ids"].tolist() == [[*range(24, 32)], [*range(8)]]
        assert batch["targets"].tolist() == [[*range(25, 33)], [*range(1, 9)]]
        assert all(tensor.is_contiguous() for tensor in batch.values())


def test_ranks_and_accumulation_share_the_samples_and_their_noise() -> None:
    whole = batches()
    parts = [
        iter(batches(rank, 2, gradient_accumulation_steps=3, dataloader_num_workers=rank))
        for rank in range(2)
    ]
    for batch in whole:
        mine = [part for rank in parts for part in islice(rank, 3)]
        shared = {
            (i, n)
            for b in mine
            for i, n in zip(b["ids"].tolist(), b["noise"].tolist(), strict=True)
        }
        assert shared == set(zip(batch["ids"].tolist(), batch["noise"].tolist(), strict=True))


@pytest.mark.parametrize("weights", [lambda _: None, lambda ids: ids + 1])
def test_however_a_step_is_split_its_loss_is_the_mean_over_the_global_batch(weights: Any) -> None:
    def mean(batch: Batch) -> float:
        ids = batch["ids"].numpy()
        return float(np.average(ids, weights=weights(ids)))  # a sample's id is its loss

    whole = [mean(batch) for batch in batches()]
    parts = [
        pairs(rank, 2, weights=weights, gradient_accumulation_steps=3, dataloader_num_workers=rank)
        for rank in range(2)
    ]
    for step, expected in enumerate(whole):
        mine = [pair for rank in parts for pair in rank[3 * step : 3 * step + 3]]
        assert sum(mean(batch) * factor for batch, factor in mine) / 2 == pytest.approx(expected)


def test_noise_differs_by_epoch() -> None:
    found = batches()
    noise: dict[int, set[int]] = {}
    for batch in found:
        for i, n in zip(batch["ids"].tolist(), batch["noise"].tolist(), strict=True):
            noise.setdefault(i, set()).add(n)
    assert sum(len(values) for values in noise.values()) == 144


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_one_line(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"^sample 7 can't be read$"):
        batches(samples=Numbers(broken=7), dataloader_num_workers=workers)


class Fates:
    """Samples that say which signal their process gets when its parent exits."""

    def __len__(self) -> int:
        return 100

    def fetch(self, _ids: Ids, _noise: Noise) -> Batch:
        fate = ctypes.c_int()
        ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(fate), 0, 0, 0)
        return {"signal": torch.tensor(fate.value)}


@pytest.mark.skipif(
    sys.platform != "linux", reason="Linux signals children when their parent exits"
)
def test_workers_die_with_their_rank() -> None:
    assert {int(b["signal"]) for b in batches(samples=Fates())} == {0}
    found = batches(samples=Fates(), dataloader_num_workers=2)
    assert {int(batch["signal"]) for batch in found} == {signal.SIGKILL}


class TornBatches:
    """Batches of a worker that dies: its sockets are closed before its parent sees it end."""

    def __init__(self, loader: Loader, error: Exception) -> None:
        self.batches = loader._batches  # kept: its end would end the worker
        (self.worker,) = loader._workers
        self.error = error

    def __next__(self) -> None:
        assert self.worker.pid
        Timer(0.2, os.kill, (self.worker.pid, signal.SIGKILL)).start()
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_killed_worker_is_reported_as_killed_despite_socket_errors(error: Exception) -> None:
    loader = loader_of(workers=1, steps=1000)
    next(loader)
    loader._batches = TornBatches(loader, error)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\) (is killed|exited)"):
        next(loader)


class Missing(Numbers):
    """Samples whose files are gone."""

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        raise FileNotFoundError(2, "No such file or directory", "image.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_raises_an_error_of_the_system_keeps_it(workers: int) -> None:
    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        batches(samples=Missing(), dataloader_num_workers=workers)


def test_epochs_end_once() -> None:
    ended = [epoch_ended(step, 12, 100) for step in range(1, 26)]
    assert [step for step, epoch in enumerate(ended, start=1) if epoch] == [9, 17, 25]
    assert [epoch for epoch in ended if epoch] == [1, 2, 3]
