"""How long a rank may do something without progress."""

import time

import pytest

from trainyard_trainer.position import FIRST_SECONDS, LONG_SECONDS, Position


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; the tests set them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def steps(position: Position, clock: list[float], *seconds: float) -> None:
    for wait in seconds:
        clock[0] += wait
        position.tick()


def test_the_first_step_may_compile(clock: list[float]) -> None:
    position = Position()
    position.enter("training")
    assert position.limit(20, compiles=False) == FIRST_SECONDS
    assert position.limit(20, compiles=True) == LONG_SECONDS
    steps(position, clock, 90, 0.5)
    assert position.limit(20, compiles=True) == 20


def test_slow_steps_are_waited_for(clock: list[float]) -> None:
    position = Position()
    position.enter("training")
    steps(position, clock, 60)
    assert position.limit(20, compiles=False) == 300  # all that is known: the first took 60 s
    steps(position, clock, 10, 10)
    assert position.limit(20, compiles=False) == 50
    steps(position, clock, 40)
    assert position.limit(20, compiles=False) == 200  # at once
    steps(position, clock, *[10] * 100)
    assert position.limit(20, compiles=False) == pytest.approx(50, rel=0.1)  # forgotten slowly


def test_what_may_take_long_and_what_is_done_beside(clock: list[float]) -> None:
    position = Position()
    assert (str(position), position.limit(20, compiles=False)) == ("loading", LONG_SECONDS)
    position.step = 8
    position.enter("training")
    steps(position, clock, 1, 1)
    before = position.ticks
    with position.doing("sampling"):
        assert str(position) == "sampling after step 8"
        assert position.limit(20, compiles=False) == FIRST_SECONDS
        clock[0] += 30
    assert position.ticks > before
    assert (str(position), position.limit(20, compiles=False)) == ("step 9", 20)
    with position.doing("sampling"):
        assert position.limit(20, compiles=False) == 150


def test_never_less_than_what_was_asked_for() -> None:
    assert Position().limit(7200, compiles=False) == 7200
