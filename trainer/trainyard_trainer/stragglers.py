"""Which rank the others wait for, judged on rank 0 from every rank's own work."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trainyard_trainer.console import Console

CLEAR_FACTOR = 1.3  # of the others' median: less is no news on a machine that does other things
LINES_IN_A_ROW = 3  # lines of progress in which it must be the same rank


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
        self._named: int | None = None

    def judge(self, found: Slowest) -> None:
        """Say it when `found` is the straggler for long enough, and when it no longer is."""
        suspect = found.rank if found.factor >= CLEAR_FACTOR else None
        self._times = self._times + 1 if suspect == self._suspect else 1
        self._suspect = suspect
        if self._times < LINES_IN_A_ROW or suspect == self._named:
            return
        if suspect is None:
            self._console.say(f"rank {self._named} is as fast as the others again")
        else:
            self._console.warn(
                f"rank {suspect} ({self.hosts[suspect]}) is the straggler: its own work takes"
                f" {found.seconds:.3g} s of a step, {found.factor:.1f}x the others' median"
            )
        self._named = suspect
