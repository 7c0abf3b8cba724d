"""How long each phase may take without progress."""

import time

import pytest

from trainyard_trainer.reporting.liveness import FIRST_SECONDS, LONG_SECONDS, Liveness


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; the tests set them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def steps(position: Liveness, clock: list[float], *seconds: float) -> None:
    for wait in seconds:
        clock[0] += wait
        position.tick()


def test_the_first_step_takes_longer(clock: list[float]) -> None:
    position = Liveness()
    position.enter("training")
    assert position.limit(20, compiling=False) == FIRST_SECONDS
    steps(position, clock, 90, 0.5)
    assert position.limit(20, compiling=False) == 20
    assert position.limit(20, compiling=True) == LONG_SECONDS  # at any step


def test_slow_steps_are_waited_for(clock: list[float]) -> None:
    position = Liveness()
    position.enter("training")
    steps(position, clock, 60)
    assert position.limit(20, compiling=False) == 300  # all that is known: the first took 60 s
    steps(position, clock, 10, 10)
    assert position.limit(20, compiling=False) == 50
    steps(position, clock, 40)
    assert position.limit(20, compiling=False) == 200  # at once
    steps(position, clock, *[10] * 100)
    assert position.limit(20, compiling=False) == pytest.approx(50, rel=0.1)  # forgotten slowly


def test_slow_phases_and_nested_phases(clock: list[float]) -> None:
    position = Liveness()
    assert (str(position), position.limit(20, compiling=False)) == ("loading", LONG_SECONDS)
    position.step = 8
    position.enter("training")
    steps(position, clock, 1, 1)
    before = position.ticks
    with position.doing("sampling"):
        assert str(position) == "sampling after step 8"
        assert position.limit(20, compiling=False) == FIRST_SECONDS
        clock[0] += 30
    assert position.ticks > before
    assert (str(position), position.limit(20, compiling=False)) == ("step 9", 20)
    with position.doing("sampling"):
        assert position.limit(20, compiling=False) == 150


def test_the_limit_is_at_least_the_timeout() -> None:
    assert Liveness().limit(7200, compiling=False) == 7200
