"""Property: whatever dies or is lost, and when, every measurement of a study counts once.

A measured cell stays measured, its figures are of all the steps of one undisturbed run, and only
what a run did wrong itself fails its cell.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.study.builders import key_of, make_study
from tests.support.study.world import FAULTS, STEPS, WARMUP, Key, StudyWorld, is_true
from trainyard_api.study import ScalingStudy
from trainyard_study import fit


@pytest.fixture(autouse=True, scope="module")
def quick_laws() -> Iterator[None]:
    """How good the intervals are is not the question here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "DRAWS", 5)
        yield


def study_of(repeats: int = 1, parallelism: int = 1) -> ScalingStudy:
    spec = {"recipe": "char-gpt", "backoff": {"initialSeconds": 1, "maxSeconds": 1}}
    return make_study(
        template={"spec": spec},
        matrix={"numProcPerNode": [1, 2]},
        repeats=repeats,
        parallelism=parallelism,
        steps=STEPS,
        warmupSteps=WARMUP,
    )


def check(world: StudyWorld, repeats: int) -> None:
    """All that must be true of a study that has ended."""
    for cell in world.study.status.cells:
        counted = [found.repeat for found in cell.measurements]
        assert len(counted) == len(set(counted)), "a run was counted twice"
        assert {(cell.number, repeat) for repeat in counted} <= world.trained.keys()
        assert all(is_true(found, cell) for found in cell.measurements), cell.measurements
        if cell.failure:
            assert (cell.number, cell.failure.repeat) in world.fated, cell.failure
            assert cell.failure.reason == "UserException"
        else:
            assert counted == list(range(1, repeats + 1))
    assert {key_of(run) for run in world.runs.values()} <= world.fated, "only failed runs are kept"
    assert all(run.status.phase == "Failed" for run in world.runs.values())
    assert world.events.keys() >= {"finished"}


def outcome(world: StudyWorld) -> Any:
    """All that the study says, but not when and how it came about."""
    wire = world.study.status.to_wire()
    for name in ("startTime", "completionTime", "message", "conditions", "observedGeneration"):
        wire.pop(name)
    for cell in wire["cells"]:
        del cell["unreported"]
        for found in cell["measurements"]:
            del found["seconds"]
    return wire


@settings(max_examples=60, deadline=None)
@given(
    repeats=st.integers(min_value=1, max_value=2),
    parallelism=st.integers(min_value=1, max_value=3),
    fated=st.sets(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=1),
    crashes=st.lists(st.integers(min_value=1, max_value=150), max_size=25, unique=True),
    away=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15)), max_size=2),
    faults=st.dictionaries(st.integers(0, 50), st.sampled_from(FAULTS), max_size=6),
    pauses=st.dictionaries(st.integers(0, 40), st.integers(1, 10), max_size=2),
)
def test_crash_anywhere(
    repeats: int,
    parallelism: int,
    fated: set[Key],
    crashes: list[int],
    away: list[tuple[int, int]],
    faults: dict[int, str],
    pauses: dict[int, int],
) -> None:
    calm = StudyWorld(study_of(repeats, parallelism), fated, {}, {})
    calm.play([])
    stormy = StudyWorld(study_of(repeats, parallelism), fated, faults, pauses)
    stormy.play(crashes, {second + later for second, seconds in away for later in range(seconds)})
    check(calm, repeats)
    check(stormy, repeats)
    assert calm.most_at_once <= parallelism
    assert pauses or stormy.most_at_once <= parallelism
    assert all(times == 1 for times in calm.trained.values())
    if parallelism == 1:  # else a failure may come before or after its cell's next run
        assert outcome(stormy) == outcome(calm)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [None, 6, 2])
def test_one_fault_in_any_second(fault: str, before: int | None) -> None:
    """before: how long before it the operator dies; then a run's last report is all there is."""
    calm = StudyWorld(study_of(), set(), {}, {})
    calm.play([])
    for second in range(20):
        world = StudyWorld(study_of(), set(), {second: fault}, {})
        dies = None if before is None else max(0, second - before)
        world.play([], () if dies is None else range(dies, dies + 12))
        check(world, repeats=1)
        assert outcome(world) == outcome(calm), f"{fault} in second {second}"
