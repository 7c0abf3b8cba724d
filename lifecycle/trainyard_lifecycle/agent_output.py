"""Reads what the agent records of a worker's end: a pod's termination message, exit.json."""

import json
import math
from typing import Any, NamedTuple

from trainyard_lifecycle.plan import Position, RankExit

MAX_TEXT = 100  # of an operation, a line, or a group


class Ending(NamedTuple):
    """How a worker ended.

    Attributes:
        message: what a worker without an agent would have left: a ProgressReport, torchelastic's
            error JSON, or the end of the log.
    """

    ranks: tuple[RankExit, ...]
    collectives: tuple[Position, ...]
    message: str


def parse_ending(text: str) -> Ending:
    """What a termination message says.

    A text that isn't the agent's stays as it is: the image had no Python for it, or the container
    was killed and has its log.
    """
    try:
        document: Any = json.loads(text)
        if not isinstance(document["exitCode"], int):
            return Ending((), (), text)
        ranks = rank_exits(document["ranks"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Ending((), (), text)
    collectives = positions(document.get("collectives"))
    if error := document.get("error"):
        message = json.dumps({"message": {"message": str(error)}})
        return Ending(ranks, collectives, message)
    report = document.get("report")
    return Ending(ranks, collectives, json.dumps(report) if report else "")


def rank_exits(listed: list[dict[str, Any]]) -> tuple[RankExit, ...]:
    """How the ranks ended, in that order, as far as the agent could read it."""
    return tuple(
        RankExit(int(rank["rank"]), int(rank["localRank"]), int(rank["exitCode"]))
        for rank in listed
        if rank["exitCode"] is not None
    )


def positions(groups: Any) -> tuple[Position, ...]:
    """Where the ranks were in each group; none if that is not what an agent writes."""
    try:
        return tuple(_position(each["group"], row) for each in groups or () for row in each["at"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return ()


def _position(group: Any, row: dict[str, Any]) -> Position:
    waiting = None if row["waiting"] is None else float(row["waiting"])
    limit = float(row["limit"])
    if not math.isfinite(limit) or not math.isfinite(waiting or 0.0) or not row["ranks"]:
        raise ValueError("not a position")
    return Position(
        group=_line(group),
        ranks=tuple(map(int, row["ranks"])),
        seq=int(row["seq"]),
        op=_line(row["op"]),
        where=_line(row["where"]),
        waiting=waiting,
        limit=limit,
    )


def _line(value: Any) -> str:
    return "".join(filter(str.isprintable, str(value)))[:MAX_TEXT]
