"""Which rank holds up the others, told from what every rank says of itself. Pure: no clock, no I/O.

Two signs: a rank is silent (its process is stopped, or its node unreachable), or all ranks speak
and none makes progress (one isn't in the collective the others wait in).
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from trainyard_trainer.watchdog.processes import State
from trainyard_trainer.watchdog.stacks import innermost, suspicion

# One call into a library that keeps Python's lock silences a rank: while data is loaded that may
# be a long one.
SILENT_LOADING = 300.0
# Ranks that wait for each other in every step can't be further apart than this.
STEPS_APART = 1


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself, every few seconds.

    Attributes:
        count: how often it has; 0 before the first time.
        host, place, pid: its process; `place` as in processes.py.
        phase, step, ticks: as in position.py.
        doing: phase and step in words.
        limit: seconds without progress that are all right in what it does.
        stack: its main thread's, outermost frame first.
        left: done or failed, when it goes.
    """

    rank: int
    count: int = 0
    host: str = "?"
    place: str = ""
    pid: int = 0
    phase: str = "loading"
    step: int = 0
    ticks: int = 0
    doing: str = "loading"
    limit: float = float("inf")
    stack: tuple[str, ...] = ()
    left: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        values = json.loads(text)
        return cls(**(values | {"stack": tuple(values["stack"])}))

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass
class Seen:
    """A rank as the one that judges has seen it.

    Attributes:
        silent: seconds since it last said something.
        stalled: seconds since it last made progress.
    """

    beat: Beat
    silent: float = 0.0
    stalled: float = 0.0

    def hear(self, beat: Beat, seconds: float) -> None:
        """Take in its newest beat, `seconds` after the last look."""
        self.silent = 0.0 if beat.count != self.beat.count else self.silent + seconds
        self.stalled = 0.0 if beat.ticks != self.beat.ticks else self.stalled + seconds
        self.beat = beat


@dataclass(frozen=True)
class Hang:
    """What is wrong: in one line, with the stacks, and the silent processes (pid, place)."""

    message: str
    stacks: str
    silent: list[tuple[int, str]] = field(default_factory=list)


Look = Callable[[Beat], State]


def find_hang(seen: Sequence[Seen], timeout: float, pause: float, look: Look) -> Hang | None:
    """The hang there is, if there is one; `pause`: seconds within which a living rank speaks."""
    lost = any(is_lost(rank, timeout, look, seen) for rank in seen)
    if not lost and any(rank.stalled <= rank.beat.limit for rank in seen):
        return None  # the others may be waiting for this one
    if any(rank.beat.left or look(rank.beat) == "gone" for rank in seen):
        return None  # the end of a rank has its own reason, which that rank or its launcher tells
    silent = [r for r in seen if r.silent > pause and look(r.beat) in ("stopped", "unknown")]
    silent.sort(key=lambda rank: -rank.silent)
    return silence(silent, seen, look) if silent else _stall(seen)


def is_lost(rank: Seen, timeout: float, look: Look, others: Sequence[Seen]) -> bool:
    """Whether the silence of `rank` means that it will not go on."""
    if rank.silent <= timeout:
        return False
    state = look(rank.beat)
    if state != "unknown":
        return state == "stopped"
    if rank.beat.phase == "loading" and rank.silent <= SILENT_LOADING:
        return False
    return all(other.beat.step <= rank.beat.step + STEPS_APART for other in others)


def silence(silent: Sequence[Seen], seen: Sequence[Seen], look: Look) -> Hang:
    """Name ranks that say nothing any more."""
    first = silent[0]
    stopped = look(first.beat) == "stopped"
    what = "is stopped" if stopped else "gives no sign of life"
    others = [rank for rank in seen if rank not in silent]
    message = f"{first.beat} {what}: nothing heard for {first.silent:.0f} s"
    if silent[1:]:
        message += f", nor of {_numbers([rank.beat for rank in silent[1:]])}"
    if others:
        message += f"; rank {others[0].beat.rank} is in {others[0].beat.doing}"
    message += f"; last seen in {first.beat.doing} at {innermost(first.beat.stack)}"
    if not stopped:
        message += "; its process hangs, or its node can't be reached"
    processes = [(rank.beat.pid, rank.beat.place) for rank in silent]
    return Hang(message, _stacks([*silent, *others[:1]]), processes)


def _stall(seen: Sequence[Seen]) -> Hang:
    """Name the ranks that aren't where the others wait."""
    seconds = min(rank.stalled for rank in seen)
    odd, why = _odd_ones([rank.beat for rank in seen])
    first = odd[0] if odd else seen[0].beat
    others = [rank for rank in seen if rank.beat not in odd]
    head = f"no progress for {seconds:.0f} s"
    place = f"{first.doing} at {innermost(first.stack)}"
    if len(seen) == 1:
        return Hang(f"{head}: {first} hangs in {place}", _stacks(seen))
    if not odd:
        message = (
            f"{head}: all {len(seen)} ranks wait in {place}: a process outside the run, a disk or"
            " the network between them doesn't answer"
        )
        return Hang(message, _stacks(seen[:2]))
    other = others[0].beat
    message = (
        f"{head}: {first} {why}: it is in {place}; rank {other.rank} waits in {other.doing}"
        f" at {innermost(other.stack)}"
    )
    if odd[1:]:
        message += f"; the same of {_numbers(odd[1:])}"
    culprits = [rank for rank in seen if rank.beat in odd]
    return Hang(message, _stacks([*culprits, *others[:1]]))


def _odd_ones(beats: Sequence[Beat]) -> tuple[list[Beat], str]:
    """The ranks that differ from the rest, and how; none if all are at the same place."""
    doubts = {beat.rank: suspicion(beat.stack) for beat in beats}
    worst = max(doubts.values())
    if worst != min(doubts.values()):
        odd = [beat for beat in beats if doubts[beat.rank] == worst]
        return odd, "holds up the others"
    # The rarest place; of two the later, for that rank has left out what the other waits in.
    places = Counter(_place(beat) for beat in beats)
    if len(places) > 1:
        rare = max(places, key=lambda place: (-places[place], *place))
        return [b for b in beats if _place(b) == rare], "is not where the others are"
    stacks = Counter(beat.stack for beat in beats)
    if len(stacks) > 1:
        odd = [b for b in beats if stacks[b.stack] == min(stacks.values())]
        if len(odd) < len(beats):
            return odd, "is not where the others are"
        return odd[:1], "is not where another one is"
    return [], ""


def _place(beat: Beat) -> tuple[int, bool, str]:
    """In the order in which places come: what follows a step is done before the next one."""
    return beat.step, beat.phase == "training", beat.phase


def _numbers(beats: Sequence[Beat]) -> str:
    """`rank 3`, `ranks 1, 2, 5` or, of many, `ranks 1, 2, 3, 4, 5, 6, 7, 8 and 12 more`."""
    numbers = [str(beat.rank) for beat in beats]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"rank{'s' if numbers[1:] else ''} {', '.join(numbers[:8])}{more}"


def _stacks(ranks: Sequence[Seen]) -> str:
    """The stacks of some ranks, one below the other."""
    parts = []
    for rank in ranks[:4]:
        lines = "".join(f"\n    {frame}" for frame in rank.beat.stack)
        parts.append(f"  {rank.beat}, {rank.beat.doing}:{lines}")
    return "\n".join(parts)
