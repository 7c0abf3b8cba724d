"""Finds the rank that the others wait for. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Sequence

MAX_MESSAGE = 500
MAX_RANKS = 4096
_STATES = ("alive", "stopped", "ended")


class RankState(NamedTuple):
    """A rank as the agent of its node sees it.

    Attributes:
        state: alive, stopped (by a signal) or ended (with exit code 0).
        waiting: seconds without work.
        frames: its stack, outermost frame first; empty if unknown, and `why` says the reason.
        own, collective, backward: as in stacks.Stack.
        silent: its own watcher shows no life; always False for a script.
    """

    rank: int
    host: str = ""
    pid: int = 0
    state: str = "alive"
    waiting: float = 0.0
    frames: tuple[str, ...] = ()
    why: str = ""
    own: str = ""
    collective: bool = False
    backward: bool = False
    silent: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    @property
    def position(self) -> str:
        """Where it is: the script's own line, and the library call that it is in."""
        if not self.frames:
            return f"an unknown position ({self.why or 'its stack was not read'})"
        innermost = self.frames[-1]
        if self.own in ("", innermost):
            return innermost
        return f"{self.own} (in {innermost})"


class Hang(NamedTuple):
    """Ranks that make no progress.

    Attributes:
        message: one line that names the rank the others wait for.
        stacks: its stack and that of one that waits, for the log.
        complete: whether every rank of the gang was seen.
        ranks: the ranks named.
    """

    message: str
    stacks: str
    complete: bool
    ranks: tuple[int, ...]


def find_hang(
    ranks: Sequence[RankState], world_size: int, after: float, unseen: Sequence[str] = ()
) -> Hang | None:
    """The hang, once no rank has worked for `after` seconds.

    `unseen`: nodes whose agents do not answer.
    """
    live = [rank for rank in ranks if rank.state != "ended"]
    if not live or any(rank.waiting < after for rank in live):
        return None
    if not unseen and len(ranks) < world_size:
        return None  # they start, or a failure is being recorded
    causes, difference = _causes(sorted(ranks))
    seconds = min(rank.waiting for rank in live)
    message = f"no progress for {seconds:.0f} s: {_describe(causes, difference, live, world_size)}"
    if unseen:
        message += f"; not seen: {', '.join(unseen[:4])}"
    shown = [*causes[:2], *[rank for rank in live if rank not in causes][:1]]
    numbers = tuple(rank.rank for rank in causes)
    return Hang(message[:MAX_MESSAGE], "\n".join(map(_stack, shown)), not unseen, numbers)


def _causes(ranks: list[RankState]) -> tuple[list[RankState], str]:
    """The ranks that the others wait for, and what is different about them."""
    for suspicion, difference in (
        ("stopped", "is stopped (SIGSTOP)"),
        ("ended", "has ended with exit code 0"),
    ):
        found = [rank for rank in ranks if rank.state == suspicion]
        if found:
            return found, difference
    if len(ranks) == 1:
        return ranks, "waits"
    outside = [rank for rank in ranks if rank.frames and not rank.collective]
    if outside and len(outside) < len(ranks):
        return outside, "is not in a collective"
    unknown = [rank for rank in ranks if not rank.frames]
    if unknown and len(unknown) < len(ranks):
        return unknown, "waits"
    # All are in collectives, or none is. An explicit one beside the backward pass of the others is
    # of a rank that has left the training loop; of two positions the rarer, then the later one.
    positions = Counter(_where(rank) for rank in ranks)
    if len(positions) > 1:
        odd = max(positions, key=lambda where: (-positions[where], where))
        return [rank for rank in ranks if _where(rank) == odd], "is not where the others are"
    return [], ""


def _where(rank: RankState) -> tuple[bool, tuple[tuple[str, int], ...]]:
    """Ordered: outside the backward pass comes after it, a later line after an earlier one."""
    return not rank.backward, tuple(_line(frame) for frame in rank.frames)


def _line(frame: str) -> tuple[str, int]:
    """`train.py:12 batch` as ("train.py", 12)."""
    name, _, rest = frame.partition(":")
    number = rest.partition(" ")[0]
    return name, int(number) if number.isdigit() else 0


def _describe(
    causes: list[RankState], difference: str, live: list[RankState], world_size: int
) -> str:
    if not causes:
        return (
            f"all {world_size} ranks wait at {live[0].position}: a process outside the run, a disk"
            " or the network between them does not respond"
        )
    first = causes[0]
    text = f"{first} {difference}"
    if first.state == "alive":
        text += f": it waits at {first.position}" if len(live) > 1 else f" at {first.position}"
    elif first.state == "stopped" and first.frames:
        text += f" at {first.position}"
    if causes[1:]:
        text += f", as {_numbers(causes[1:])}"
    others = [rank for rank in live if rank not in causes]
    if others:
        text += f"; rank {others[0].rank} waits at {others[0].position}"
    return text


def _numbers(ranks: Sequence[RankState]) -> str:
    """`is rank 3`, or `are ranks 1, 2 and 7 more`."""
    numbers = [str(each.rank) for each in ranks]
    more = f" and {len(numbers) - 8} more" if numbers[8:] else ""
    return f"{'are ranks' if numbers[1:] else 'is rank'} {', '.join(numbers[:8])}{more}"


def _stack(rank: RankState) -> str:
    lines = "".join(f"\n    {frame}" for frame in rank.frames) or f"\n    {rank.position}"
    return f"  {rank}:{lines}"


def to_wire(rank: RankState) -> dict[str, Any]:
    return rank._asdict()


def from_wire(document: Any) -> list[RankState]:
    """The ranks in another agent's answer. Raises ValueError if it isn't one."""
    listed = document.get("ranks") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_RANKS:
        raise ValueError("no list of ranks")
    return [_rank_from_wire(entry) for entry in listed]


def _rank_from_wire(entry: Any) -> RankState:
    try:
        rank = RankState(
            rank=int(entry["rank"]),
            host=str(entry["host"])[:253],
            pid=int(entry["pid"]),
            state=str(entry["state"]),
            waiting=float(entry["waiting"]),
            frames=tuple(str(frame)[:300] for frame in entry["frames"][:64]),
            why=str(entry["why"])[:300],
            own=str(entry["own"])[:300],
            collective=bool(entry["collective"]),
            backward=bool(entry["backward"]),
            silent=bool(entry.get("silent", False)),  # not of an older agent
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a rank: {error}") from None
    if rank.state not in _STATES:
        raise ValueError(f"unknown state {rank.state!r}")
    return rank
