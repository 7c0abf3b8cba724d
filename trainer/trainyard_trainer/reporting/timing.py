"""Step times, rates, peak memory, and which rank is slower than the others."""

import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainyard_api.status import StepSeconds
from trainyard_trainer.reporting.console import Console

_IMPORTED = time.monotonic()


def since_start() -> float:
    """Seconds since the process was started; elsewhere than on Linux, since this import."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED


def peak_memory_bytes(device: torch.device) -> int:
    """Of its GPU (what PyTorch allocated); without one, of the process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


_REMEMBERED = 10_000  # steps


class Throughput:
    """Times the optimizer steps themselves: evaluation and checkpoints are not in them."""

    def __init__(self, batch_size: int, tokens_per_sample: float, warmup_steps: int = 1) -> None:
        """`warmup_steps`: this attempt's first steps warm up kernels and allocators, or compile:
        no measure of the rest, so that `step_seconds` leaves them out."""
        self.batch_size = batch_size
        self.tokens_per_sample = tokens_per_sample
        self._window = 0.0
        self._steps = 0
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._warmup_left = warmup_steps

    def add(self, seconds: float) -> None:
        """Another step is done."""
        self._window += seconds
        self._steps += 1
        if self._warmup_left > 0:
            self._warmup_left -= 1
        else:
            self._times.append(seconds)

    def rates(self) -> tuple[float, float | None]:
        """Samples and tokens per second, all ranks, since the last call."""
        samples = self._steps * self.batch_size / self._window
        self._window, self._steps = 0.0, 0
        return samples, samples * self.tokens_per_sample or None

    def step_seconds(self) -> StepSeconds | None:
        """Statistics of this attempt's steps after the warm-up."""
        if not self._times:
            return None
        times = np.fromiter(self._times, float)
        p50, p99 = np.percentile(times, (50, 99))
        return StepSeconds(mean=float(times.mean()), p50=float(p50), p99=float(p99))


CLEAR_FACTOR = 1.3  # of the others' median: less is no news on a machine that does other things
LINES_IN_A_ROW = 3  # lines of progress in which it must be the same rank,
LOST_SECONDS = 2.0  # and what it must have cost the others in them


@dataclass(frozen=True)
class Slowest:
    """The rank with most work per step, beside the others."""

    rank: int
    seconds: float
    others: float  # their median

    @property
    def factor(self) -> float:
        """How many times as long as the others' it takes."""
        return self.seconds / max(self.others, 1e-9)


def slowest(seconds: Sequence[float]) -> Slowest | None:
    """The slowest of at least two ranks."""
    if len(seconds) < 2:
        return None
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = [value for other, value in enumerate(seconds) if other != rank]
    return Slowest(rank, seconds[rank], statistics.median(others))


class Stragglers:
    """Names a rank that is clearly slower than the others again and again."""

    def __init__(self, hosts: Sequence[str], console: Console) -> None:
        self.hosts = hosts
        self._console = console
        self._suspect: int | None = None
        self._times = 0
        self._lost = 0.0
        self._named: int | None = None

    def update(self, rank: Slowest, steps: int) -> None:
        """Add another `steps`; say which rank has been a straggler for long, or no longer is."""
        suspect = rank.rank if rank.factor >= CLEAR_FACTOR else None
        if suspect != self._suspect:
            self._suspect, self._times, self._lost = suspect, 0, 0.0
        self._times += 1
        self._lost += steps * (rank.seconds - rank.others)
        enough = suspect is None or self._lost >= LOST_SECONDS
        if self._times < LINES_IN_A_ROW or not enough or suspect == self._named:
            return
        if suspect is None:
            self._console.say(f"rank {self._named} is as fast as the others again")
        else:
            self._console.warn(
                f"rank {suspect} ({self.hosts[suspect]}) is the straggler: its own work takes"
                f" {rank.seconds:.3g} s of a step, {rank.factor:.1f}x the others' median"
            )
        self._named = suspect
