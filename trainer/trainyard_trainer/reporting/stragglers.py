"""Which rank the others wait for, judged on rank 0 from every rank's own work."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trainyard_trainer.reporting.console import Console

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

    def judge(self, found: Slowest, steps: int) -> None:
        """Hear of another `steps`; say who is the straggler for long enough, or no longer is."""
        suspect = found.rank if found.factor >= CLEAR_FACTOR else None
        if suspect != self._suspect:
            self._suspect, self._times, self._lost = suspect, 0, 0.0
        self._times += 1
        self._lost += steps * (found.seconds - found.others)
        enough = suspect is None or self._lost >= LOST_SECONDS
        if self._times < LINES_IN_A_ROW or not enough or suspect == self._named:
            return
        if suspect is None:
            self._console.say(f"rank {self._named} is as fast as the others again")
        else:
            self._console.warn(
                f"rank {suspect} ({self.hosts[suspect]}) is the straggler: its own work takes"
                f" {found.seconds:.3g} s of a step, {found.factor:.1f}x the others' median"
            )
        self._named = suspect
