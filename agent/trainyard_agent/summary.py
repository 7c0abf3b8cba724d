"""What all ranks of a run use, in a few figures for its status.

A status is stored and sent to everybody who watches it: figures change once a minute at most, and
only by considerable amounts.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from trainyard_agent.peers import ask_all
from trainyard_agent.usage import RankUsage, from_wire

FIRST_LOOKS, LOOKS = 5, 30  # of the agent at its ranks, between two summaries
SHARE = 0.2  # of a figure: smaller changes aren't shown
CORES, UTILIZATION, BYTES = 0.1, 0.05, 64 << 20  # the least change shown, of small figures


class Extremes(NamedTuple):
    """The lowest and the highest value, and the ranks that have them."""

    lowest: float
    lowest_rank: int
    highest: float
    highest_rank: int

    @classmethod
    def of(cls, values: Iterable[tuple[float, int]]) -> Extremes | None:
        """Of pairs of value and rank; None if there are none."""
        ordered = sorted(values)
        return cls(*ordered[0], *ordered[-1]) if ordered else None

    def to_wire(self) -> dict[str, Any]:
        return {
            "lowest": self.lowest,
            "lowestRank": self.lowest_rank,
            "highest": self.highest,
            "highestRank": self.highest_rank,
        }


class Summary:
    """Of the ranks seen; a figure stays as it was shown last until it has changed considerably."""

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}  # seconds by rank, at the last look
        self._looked = 0.0
        self._shown: dict[str, Extremes] = {}

    def update(self, usages: Sequence[RankUsage], now: float) -> dict[str, Any]:
        """The usage of a ProgressReport. CPU use is the mean since the last update."""
        seconds = max(now - self._looked, 1e-3)
        cpu = [
            (max(0.0, each.cpu_seconds - self._cpu[each.rank]) / seconds, each.rank)
            for each in usages
            if each.rank in self._cpu
        ]
        self._cpu = {each.rank: each.cpu_seconds for each in usages}
        self._looked = now
        gpus = [(each.gpu, each.rank) for each in usages if each.gpu]
        self._show("cpuCores", Extremes.of(cpu), CORES)
        self._show("memoryBytes", Extremes.of((u.memory, u.rank) for u in usages), BYTES)
        self._show("gpuUtilization", Extremes.of((g.utilization, r) for g, r in gpus), UTILIZATION)
        self._show("gpuMemoryBytes", Extremes.of((g.memory, r) for g, r in gpus), BYTES)
        figures = {name: extremes.to_wire() for name, extremes in self._shown.items()}
        return {"ranks": len(usages), **figures}

    def _show(self, name: str, new: Extremes | None, least: float) -> None:
        old = self._shown.get(name)
        if new is None:
            self._shown.pop(name, None)
        elif (
            old is None
            or _differs(old.lowest, new.lowest, least)
            or _differs(old.highest, new.highest, least)
        ):
            self._shown[name] = new  # both of one moment


class SummaryThread:
    """Asks the agents of all nodes what their ranks use, and hands it to the report."""

    def __init__(
        self,
        usages: Callable[[], list[RankUsage]],
        peers: Sequence[str],
        report: Callable[[dict[str, Any], int], None],
        interval: float,
        closing: threading.Event,
    ) -> None:
        """`usages`: of this node's ranks; `report` gets the usage, and the most memory of a rank.

        `interval`: seconds between two looks at the ranks.
        """
        self._usages = usages
        self._peers = peers
        self._report = report
        self._interval = interval
        self._closing = closing
        # Its own, because a node that doesn't answer must not delay the watch for hangs.
        threading.Thread(target=self._run, name="usage", daemon=True).start()

    def _run(self) -> None:
        summary, looks = Summary(), FIRST_LOOKS
        while not self._closing.wait(looks * self._interval):
            usages = self._usages()
            for answer in ask_all(self._peers):
                usages += from_wire(answer)
            if usages:
                usage = summary.update(usages, time.monotonic())
                self._report(usage, max(each.peak for each in usages))
                looks = LOOKS if "cpuCores" in usage else FIRST_LOOKS


def _differs(old: float, new: float, least: float) -> bool:
    return abs(new - old) > max(least, SHARE * abs(old))
