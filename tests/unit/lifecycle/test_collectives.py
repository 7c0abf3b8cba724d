"""Which rank is named from what ranks had recorded of their collectives."""

from typing import Any

import pytest

from tests.support.lifecycle.builders import make_worker
from trainyard_lifecycle.collectives import find_missing
from trainyard_lifecycle.plan import Position, RankExit, Worker


def at(
    seq: int, *ranks: int, op: str = "all_reduce", waits: float | None = 600, group: str = ""
) -> Position:
    name = group or "default_pg"
    return Position(name, ranks, seq, op if seq else "", f"a.py:{seq} f", waits, 600)


def failed(*positions: Position, **fields: Any) -> Worker:
    return make_worker(phase="Failed", exit_code=1, collectives=positions, **fields)


def done(seq: int, *ranks: int, **values: Any) -> Position:
    return at(seq, *ranks, waits=None, **values)


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (
            (at(141, 0, 1, 3), done(140, 2)),
            "rank 2 did not enter all_reduce #141 (a.py:141 f), in which ranks 0, 1 and 3 waited"
            " for 600 s; rank 2 was last in all_reduce #140 (a.py:140 f)",
        ),
        (
            (at(1, 0, 1), done(0, 2, 3)),
            "ranks 2 and 3 did not enter all_reduce #1 (a.py:1 f), in which ranks 0 and 1 waited"
            " for 600 s",
        ),
        (
            (at(9, 0, 1, 3), at(9, 2, op="all_gather")),
            "rank 2 entered all_gather #9 (a.py:9 f) while ranks 0, 1 and 3 entered all_reduce #9"
            " (a.py:9 f); ranks 0, 1, 2 and 3 waited for 600 s",
        ),
        (
            (at(9, 0, 1, 3),),
            "rank 2 left no record of all_reduce #9 (a.py:9 f), in which ranks 0, 1 and 3 waited"
            " for 600 s",
        ),
        (
            (at(9, 0, 1, 2, 3),),
            "ranks 0, 1, 2 and 3 waited for 600 s in all_reduce #9 (a.py:9 f), which all had"
            " entered: a GPU or the network did not respond",
        ),
        (  # rank 1 waits for rank 3 in a group of theirs, so rank 3 is to blame
            (
                *(at(9, 0, 2), done(8, 1, 3)),
                *(at(4, 1, group="tp 2"), done(3, 3, group="tp 2")),
            ),
            "rank 3 did not enter all_reduce #4 of group tp 2 (a.py:4 f), in which rank 1 waited"
            " for 600 s; rank 3 was last in all_reduce #3 of group tp 2 (a.py:3 f)",
        ),
    ],
)
def test_the_rank_that_is_behind_is_named(positions: tuple[Position, ...], text: str) -> None:
    failure = find_missing([failed(*positions)], 4)
    assert failure is not None
    assert (failure.reason, failure.words) == ("Hang", text)


def test_ranks_of_all_nodes_are_compared() -> None:
    gang = [failed(at(9, 0, 1)), failed(done(8, 2, 3), node=1)]
    failure = find_missing(gang, 4)
    assert failure is not None
    assert failure.message.startswith("r-1-1: ranks 2 and 3 did not enter all_reduce #9 ")


@pytest.mark.parametrize(
    "worker",
    [
        failed(),
        failed(done(9, 0), done(8, 1)),
        failed(at(9, 0, waits=2.0), done(8, 1)),  # an error of the network: rank 1 was only later
        failed(at(9, 0), ranks=(RankExit(1, 1, -9), RankExit(0, 0, -6))),
        failed(at(9, 0), done(8, 1), ranks=(RankExit(1, 1, -11), RankExit(0, 0, -6))),
    ],
)
def test_what_explains_nothing_or_less_than_the_rank_s_own_end(worker: Worker) -> None:
    assert find_missing([worker], 2) is None


def test_a_rank_that_was_killed_after_the_others_had_aborted_is_named() -> None:
    """One that is stopped leaves no record, and can only be killed."""
    ends = (RankExit(0, 0, -6), RankExit(1, 1, -9))
    failure = find_missing([failed(at(9, 0), ranks=ends)], 2)
    assert failure is not None
    assert "rank 1 left no record" in failure.message
