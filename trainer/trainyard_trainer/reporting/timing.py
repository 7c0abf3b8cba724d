"""Step times, rates, peak memory, and stragglers."""

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
    """Peak memory allocated by PyTorch on a GPU; on a CPU, peak resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


_MAX_TIMES = 10_000  # steps in the statistics


class Throughput:
    """Rates and statistics of optimizer steps, without evaluation and checkpoints."""

    def __init__(self, batch_size: int, tokens_per_sample: float, warmup_steps: int = 1) -> None:
        """`warmup_steps`: first steps of the attempt, excluded from `step_seconds` because they
        select kernels, allocate memory or compile."""
        self.batch_size = batch_size
        self.tokens_per_sample = tokens_per_sample
        self._usual = [0.0, 0]  # seconds and steps since the last call of `rates`
        self._slowed = [0.0, 0]
        self._times: deque[float] = deque(maxlen=_MAX_TIMES)
        self._warmup_left = warmup_steps

    def add(self, seconds: float, *, slowed: bool = False) -> None:
        """Add the time of a step; `slowed`: by a profiler, so it isn't what training takes."""
        counted = self._slowed if slowed else self._usual
        counted[0] += seconds
        counted[1] += 1
        if self._warmup_left > 0:
            self._warmup_left -= 1
        elif not slowed:
            self._times.append(seconds)

    def rates(self) -> tuple[float, float | None]:
        """Samples and tokens per second, all ranks, since the last call.

        Of slowed steps only if there was no other.
        """
        seconds, steps = self._usual if self._usual[1] else self._slowed
        samples = steps * self.batch_size / seconds
        self._usual, self._slowed = [0.0, 0], [0.0, 0]
        return samples, samples * self.tokens_per_sample or None

    def step_seconds(self) -> StepSeconds | None:
        """Statistics of this attempt's steps after the warm-up."""
        if not self._times:
            return None
        times = np.fromiter(self._times, float)
        p50, p99 = np.percentile(times, (50, 99))
        return StepSeconds(mean=float(times.mean()), p50=float(p50), p99=float(p99))


# A straggler takes this many times the others' median (less is noise on a busy machine), in this
# many progress lines in a row, and has cost the others this long.
CLEAR_FACTOR = 1.3
LINES_IN_A_ROW = 3
LOST_SECONDS = 2.0


@dataclass(frozen=True)
class Slowest:
    """The rank with the most work per step, compared with the others."""

    rank: int
    seconds: float
    others: float  # their median

    @property
    def factor(self) -> float:
        """Its work as a multiple of the others' median."""
        return self.seconds / max(self.others, 1e-9)


def slowest(seconds: Sequence[float]) -> Slowest | None:
    """The slowest of at least two ranks."""
    if len(seconds) < 2:
        return None
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = [value for other, value in enumerate(seconds) if other != rank]
    return Slowest(rank, seconds[rank], statistics.median(others))


class Stragglers:
    """Warns of a rank that is persistently slower than the others."""

    def __init__(self, hosts: Sequence[str], console: Console) -> None:
        self.hosts = hosts
        self._console = console
        self._suspect: int | None = None
        self._lines = 0
        self._lost = 0.0
        self._reported: int | None = None

    def update(self, rank: Slowest, steps: int) -> None:
        """Add a progress line of `steps`; report a new straggler, or the end of one."""
        suspect = rank.rank if rank.factor >= CLEAR_FACTOR else None
        if suspect != self._suspect:
            self._suspect, self._lines, self._lost = suspect, 0, 0.0
        self._lines += 1
        self._lost += steps * (rank.seconds - rank.others)
        enough = suspect is None or self._lost >= LOST_SECONDS
        if self._lines < LINES_IN_A_ROW or not enough or suspect == self._reported:
            return
        if suspect is None:
            self._console.info(f"rank {self._reported} is as fast as the others again")
        else:
            self._console.warn(
                f"rank {suspect} ({self.hosts[suspect]}) is the straggler: its own work takes"
                f" {rank.seconds:.3g} s of a step, {rank.factor:.1f}x the others' median"
            )
        self._reported = suspect
