"""Finds the rank that blocks the others from the ranks' heartbeats. Pure: no clock, no I/O.

Two symptoms: a rank is silent (its process is stopped, or its node unreachable), or all ranks send
heartbeats and none makes progress (one isn't in the collective the others wait in).
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from trainyard_trainer.watchdog.process_state import State
from trainyard_trainer.watchdog.stacks import innermost, suspicion

# A library call that holds the GIL stops a rank's heartbeats; while data is loaded it may be long.
SILENT_LOADING = 300.0
# Ranks synchronise in every step, so they can't be further apart.
STEPS_APART = 1


@dataclass(frozen=True)
class Heartbeat:
    """A rank's state, sent every few seconds.

    Attributes:
        count: number of this heartbeat; 0 before the first.
        host, pid_namespace, pid: its process; `pid_namespace` as in process_state.py.
        phase, step, ticks: as in liveness.py.
        activity: phase and step as text.
        limit: seconds without progress allowed in this phase.
        stack: of the main thread, outermost frame first.
        outcome: done or failed, in the last heartbeat.
    """

    rank: int
    count: int = 0
    host: str = "?"
    pid_namespace: str = ""
    pid: int = 0
    phase: str = "loading"
    step: int = 0
    ticks: int = 0
    activity: str = "loading"
    limit: float = float("inf")
    stack: tuple[str, ...] = ()
    outcome: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        values = json.loads(text)
        return cls(**(values | {"stack": tuple(values["stack"])}))

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass
class ObservedRank:
    """A rank as observed by the rank that checks it.

    Attributes:
        silent: seconds since its last heartbeat.
        stalled: seconds since its last progress.
    """

    beat: Heartbeat
    silent: float = 0.0
    stalled: float = 0.0

    def update(self, beat: Heartbeat, seconds: float) -> None:
        """Set its newest heartbeat, `seconds` after the previous update."""
        self.silent = 0.0 if beat.count != self.beat.count else self.silent + seconds
        self.stalled = 0.0 if beat.ticks != self.beat.ticks else self.stalled + seconds
        self.beat = beat


@dataclass(frozen=True)
class Hang:
    """A hang: message, stacks, and the silent processes (pid, PID namespace)."""

    message: str
    stacks: str
    silent: list[tuple[int, str]] = field(default_factory=list)


StateOf = Callable[[Heartbeat], State]  # of a rank's process


def find_hang(
    seen: Sequence[ObservedRank],
    timeout: float,
    max_interval: float,
    state_of: StateOf,
    patience: float = 0.0,
) -> Hang | None:
    """The hang, if there is one. `max_interval`: seconds between heartbeats of a live rank.

    `patience`: seconds longer in which the agents may name it, who see from outside where a rank is
    that sends no heartbeats and isn't stopped. A native call may hold its GIL.
    """
    lost = any(is_lost(rank, timeout, state_of, seen, patience) for rank in seen)
    if not lost and any(rank.stalled <= rank.beat.limit for rank in seen):
        return None  # the others may be waiting for this one
    if any(rank.beat.outcome or state_of(rank.beat) == "gone" for rank in seen):
        return None  # a rank has ended, and it or its launcher reports the reason
    silent = [
        r for r in seen if r.silent > max_interval and state_of(r.beat) in ("stopped", "unknown")
    ]
    muted = any(r.silent > max_interval and state_of(r.beat) != "stopped" for r in seen)
    if muted and not lost and any(rank.stalled <= rank.beat.limit + patience for rank in seen):
        return None
    silent.sort(key=lambda rank: -rank.silent)
    return report_silence(silent, seen, state_of) if silent else _report_stall(seen)


def is_lost(
    rank: ObservedRank,
    timeout: float,
    state_of: StateOf,
    others: Sequence[ObservedRank],
    patience: float,
) -> bool:
    """Whether `rank` is silent and will not continue; `patience` as for `find_hang`."""
    if rank.silent <= timeout:
        return False
    state = state_of(rank.beat)
    if state != "unknown":
        return state == "stopped"
    host = [other for other in others if other.beat.host == rank.beat.host]
    node_is_lost = all(other.silent > timeout for other in host)  # or its only rank is silent
    if rank.silent <= timeout + (0.0 if node_is_lost else patience):
        return False
    if rank.beat.phase == "loading" and rank.silent <= SILENT_LOADING:
        return False
    return all(other.beat.step <= rank.beat.step + STEPS_APART for other in others)


def report_silence(
    silent: Sequence[ObservedRank], seen: Sequence[ObservedRank], state_of: StateOf
) -> Hang:
    """The hang of ranks without heartbeats."""
    first = silent[0]
    stopped = state_of(first.beat) == "stopped"
    symptom = "is stopped" if stopped else "does not respond"
    others = [rank for rank in seen if rank not in silent]
    message = f"{first.beat} {symptom}: no heartbeat for {first.silent:.0f} s"
    if silent[1:]:
        message += f", nor from {_numbers([rank.beat for rank in silent[1:]])}"
    if others:
        message += f"; rank {others[0].beat.rank} is in {others[0].beat.activity}"
    message += f"; last seen in {first.beat.activity} at {innermost(first.beat.stack)}"
    if not stopped:
        message += "; its process hangs, or its node is unreachable"
    processes = [(rank.beat.pid, rank.beat.pid_namespace) for rank in silent]
    return Hang(message, _stacks([*silent, *others[:1]]), processes)


def _report_stall(seen: Sequence[ObservedRank]) -> Hang:
    """The hang of ranks that are not where the others wait."""
    seconds = min(rank.stalled for rank in seen)
    outliers, difference = _find_outliers([rank.beat for rank in seen])
    first = outliers[0] if outliers else seen[0].beat
    others = [rank for rank in seen if rank.beat not in outliers]
    head = f"no progress for {seconds:.0f} s"
    position = f"{first.activity} at {innermost(first.stack)}"
    if len(seen) == 1:
        return Hang(f"{head}: {first} hangs in {position}", _stacks(seen))
    if not outliers:
        message = (
            f"{head}: all {len(seen)} ranks wait in {position}: a process outside the run, a disk"
            " or the network between them does not respond"
        )
        return Hang(message, _stacks(seen[:2]))
    other = others[0].beat
    message = (
        f"{head}: {first} {difference}: it is in {position}; rank {other.rank} waits in"
        f" {other.activity} at {innermost(other.stack)}"
    )
    if outliers[1:]:
        message += f"; also {_numbers(outliers[1:])}"
    causes = [rank for rank in seen if rank.beat in outliers]
    return Hang(message, _stacks([*causes, *others[:1]]))


def _find_outliers(beats: Sequence[Heartbeat]) -> tuple[list[Heartbeat], str]:
    """The ranks that differ from the rest, and how; none if all are at the same position."""
    suspicions = {beat.rank: suspicion(beat.stack) for beat in beats}
    worst = max(suspicions.values())
    if worst != min(suspicions.values()):
        outliers = [beat for beat in beats if suspicions[beat.rank] == worst]
        return outliers, "holds up the others"
    # The rarest position; of two the later: that rank has skipped the collective the other is in.
    positions = Counter(_position(beat) for beat in beats)
    if len(positions) > 1:
        rare = max(positions, key=lambda position: (-positions[position], *position))
        return [b for b in beats if _position(b) == rare], "is not where the others are"
    stacks = Counter(beat.stack for beat in beats)
    if len(stacks) > 1:
        outliers = [b for b in beats if stacks[b.stack] == min(stacks.values())]
        if len(outliers) < len(beats):
            return outliers, "is not where the others are"
        return outliers[:1], "is not where another one is"
    return [], ""


def _position(beat: Heartbeat) -> tuple[int, bool, str]:
    """Ordered by time: what follows a step comes before the next step."""
    return beat.step, beat.phase == "training", beat.phase


def _numbers(beats: Sequence[Heartbeat]) -> str:
    """`rank 3`, `ranks 1, 2, 5` or, of many, `ranks 1, 2, 3, 4, 5, 6, 7, 8 and 12 more`."""
    numbers = [str(beat.rank) for beat in beats]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"rank{'s' if numbers[1:] else ''} {', '.join(numbers[:8])}{more}"


def _stacks(ranks: Sequence[ObservedRank]) -> str:
    """The stacks of some ranks, one below the other."""
    parts = []
    for rank in ranks[:4]:
        lines = "".join(f"\n    {frame}" for frame in rank.beat.stack)
        parts.append(f"  {rank.beat}, {rank.beat.activity}:{lines}")
    return "\n".join(parts)
