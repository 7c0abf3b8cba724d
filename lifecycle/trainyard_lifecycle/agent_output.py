"""Reads what the agent records of a worker's end: a pod's termination message, exit.json."""

import json
from typing import Any

from trainyard_lifecycle.plan import RankExit


def parse_ending(text: str) -> tuple[tuple[RankExit, ...], str]:
    """The ranks that failed, and the rest as a worker without an agent would have left it.

    That is a ProgressReport, or torchelastic's error JSON. A text that isn't the agent's stays as
    it is: the image had no Python for it, or the container was killed and has its log.
    """
    try:
        document: Any = json.loads(text)
        if not isinstance(document["exitCode"], int):
            return (), text
        ranks = rank_exits(document["ranks"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return (), text
    if error := document.get("error"):
        return ranks, json.dumps({"message": {"message": str(error)}})
    report = document.get("report")
    return ranks, json.dumps(report) if report else ""


def rank_exits(listed: list[dict[str, Any]]) -> tuple[RankExit, ...]:
    """How the ranks ended, in that order, as far as the agent could read it."""
    return tuple(
        RankExit(int(rank["rank"]), int(rank["localRank"]), int(rank["exitCode"]))
        for rank in listed
        if rank["exitCode"] is not None
    )
