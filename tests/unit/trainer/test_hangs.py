"""The cause of a hang is found from heartbeats alone: no processes, no clock."""

from typing import Any

import pytest

from trainyard_trainer.watchdog.hangs import Hang, Heartbeat, ObservedRank, find_hang
from trainyard_trainer.watchdog.process_state import State

TIMEOUT, PAUSE = 20.0, 6.0
BACKWARD = ("trainyard_trainer/loop.py:108 Loop._train_step", "torch/autograd/graph.py:1 backward")
GATHER = (
    "trainyard_trainer/distributed/process_group.py:55 Group.gather",
    "torch/distributed/x.py:1 all_gather",
)
LOADER = (
    "trainyard_trainer/data/loader.py:90 Loader.__next__",
    "python3.11/queue.py:171 Queue.get",
)
OWN = ("my/recipe.py:7 loss", "python3.11/socket.py:1 recv")


def seen(rank: int, silent: float = 1, stalled: float = 25, **beat: Any) -> ObservedRank:
    defaults: dict[str, Any] = {
        "count": 9, "host": f"host{rank}", "pid": rank, "phase": "training", "step": 4,
        "activity": "step 5", "limit": TIMEOUT, "stack": BACKWARD,
    }  # fmt: skip
    return ObservedRank(Heartbeat(rank, **(defaults | beat)), silent, stalled)


def find(*ranks: ObservedRank, states: dict[int, State] | None = None) -> Hang | None:
    """By default no process can be seen: each rank is on a machine of its own."""
    return find_hang(ranks, TIMEOUT, PAUSE, lambda beat: (states or {}).get(beat.rank, "unknown"))


def named(*ranks: ObservedRank, states: dict[int, State] | None = None) -> str:
    hang = find(*ranks, states=states)
    assert hang is not None
    assert "\n" not in hang.message
    return hang.message


def test_a_silent_rank_is_named() -> None:
    message = named(seen(0), seen(1, silent=21), seen(2))
    assert message.startswith("rank 1 (host1, pid 1) does not respond: no heartbeat for 21 s")
    assert "; rank 0 is in step 5; last seen in step 5 at trainyard_trainer/loop.py:108" in message
    stopped = named(seen(0), seen(1, silent=21), states={0: "alive", 1: "stopped"})
    assert stopped.startswith("rank 1 (host1, pid 1) is stopped: no heartbeat for 21 s")


def test_all_silent_ranks_are_named() -> None:
    assert "no heartbeat for 21 s, nor from rank 1" in named(
        seen(0), seen(1, silent=19), seen(2, silent=21)
    )
    ranks = [seen(0)] + [seen(rank, silent=21) for rank in range(1, 12)]
    assert "no heartbeat for 21 s, nor from ranks 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in named(
        *ranks
    )


def test_a_rank_silent_for_less_than_the_timeout_can_be_the_cause() -> None:
    """Its last step was before its last heartbeat, so the stall is noticed first."""
    assert named(seen(0), seen(1, silent=19)).startswith("rank 1 (host1, pid 1) does not respond")


@pytest.mark.parametrize(
    "silent",
    [
        seen(1, silent=19, stalled=19),
        seen(1, silent=60, phase="loading", limit=1800),  # a long call that keeps Python's lock
        seen(1, silent=60, step=2, limit=1800),  # the others are two steps further: it takes part
    ],
)
def test_silence_without_a_hang(silent: ObservedRank) -> None:
    assert find(seen(0, stalled=1), silent) is None


def test_a_silent_process_that_runs_has_its_own_limit() -> None:
    ranks = seen(0), seen(1, silent=60, stalled=60, limit=100)
    assert find(*ranks, states={1: "alive"}) is None
    assert find(*ranks, states={1: "stopped"}) is not None


@pytest.mark.parametrize(
    ("state", "others", "at_once"),
    [("alive", [], 0), ("stopped", [], 1), ("unknown", [1], 0), ("unknown", [30], 1)],
)
def test_an_agent_has_time_to_name_a_rank_that_is_silent_and_not_stopped(
    state: State, others: list[float], at_once: bool
) -> None:
    """What is known here is where it was before a native call took the GIL.

    Of a node whose ranks are all silent nobody can say more. `others`: their seconds of silence.
    """

    def find_later(seconds: float) -> Hang | None:
        ranks = [seen(0, stalled=seconds), seen(1, silent=seconds, stalled=seconds)]
        ranks += [seen(2, silent, seconds, host="host1") for silent in others]
        states: dict[int, State] = {0: "alive", 1: state}

        def state_of(beat: Heartbeat) -> State:
            return states.get(beat.rank, state)

        return find_hang(ranks, TIMEOUT, PAUSE, state_of, patience=60)

    assert bool(find_later(21)) == bool(find_later(79)) == at_once
    assert find_later(81)


def test_a_rank_that_ended_is_not_reported_as_a_hang() -> None:
    ended = seen(1, silent=60, stalled=60)
    assert find(seen(0), ended, states={1: "gone"}) is None
    assert find(seen(0), seen(1, silent=60, stalled=60, outcome="failed")) is None


def test_one_slow_phase_extends_the_limit_of_all() -> None:
    assert find(seen(0, phase="saving", limit=1800), seen(1), seen(2)) is None
    assert find(seen(0, stalled=3), seen(1), seen(2)) is None


@pytest.mark.parametrize("stack", [LOADER, OWN])
def test_the_rank_that_is_not_in_the_collective_is_named(stack: tuple[str, ...]) -> None:
    message = named(seen(0), seen(1), seen(2, stack=stack), seen(3, stack=stack))
    assert message.endswith("; also rank 3")
    assert "rank 2 (host2, pid 2) holds up the others: it is in step 5 at " in message
    assert "; rank 0 waits in step 5 at trainyard_trainer/loop.py:108" in message
    assert f"{stack[0]} (in {stack[1]})" in message


def test_the_rank_at_another_position_is_named() -> None:
    ahead = seen(1, step=5, activity="step 6")
    assert "rank 1 (host1, pid 1) is not where the others are: it is in step 6" in named(
        seen(0), ahead, seen(2)
    )
    behind = seen(2, stack=GATHER, phase="evaluating", activity="evaluating after step 4")
    assert "rank 2 (host2, pid 2) is not where" in named(seen(0), seen(1), behind)
    place = seen(1, stack=GATHER)
    assert "rank 1 (host1, pid 1) is not where the others are" in named(seen(0), place, seen(2))


@pytest.mark.parametrize("skips", [0, 1])
def test_of_two_ranks_the_later_one_has_skipped_a_collective(skips: int) -> None:
    doing = "checkpointing after step 4"
    waits: dict[str, Any] = {"stack": GATHER, "phase": "checkpointing", "activity": doing}
    ranks = [seen(rank, **({} if rank == skips else waits)) for rank in range(2)]
    assert f"rank {skips} (host{skips}, pid {skips}) is not where the others are" in named(*ranks)


def test_all_ranks_at_the_same_position() -> None:
    assert named(seen(0), seen(1)).startswith(
        "no progress for 25 s: all 2 ranks wait in step 5 at trainyard_trainer/loop.py:108"
    )
    assert named(seen(0, stack=OWN)).startswith(
        "no progress for 25 s: rank 0 (host0, pid 0) hangs in step 5 at my/recipe.py:7 loss"
    )


def test_time_without_heartbeats_adds_up() -> None:
    rank = ObservedRank(Heartbeat(1, count=1, ticks=5))
    rank.update(Heartbeat(1, count=2, ticks=5), 2)
    assert (rank.silent, rank.stalled) == (0, 2)
    rank.update(Heartbeat(1, count=2, ticks=5), 2)
    assert (rank.silent, rank.stalled) == (2, 4)
    rank.update(Heartbeat(1, count=3, ticks=6), 2)
    assert (rank.silent, rank.stalled) == (0, 0)


def test_a_heartbeat_survives_json() -> None:
    beat = seen(3).beat
    assert Heartbeat.from_json(beat.to_json()) == beat
