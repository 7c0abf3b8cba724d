"""Property: whatever dies between any two actions, every measurement of a study counts once."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lifecycle import crashing
from tests.support.study.builders import failed, key_of, make_study, started, succeeded
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_study import fit
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import reconcile_study


@pytest.fixture(autouse=True, scope="module")
def quick_laws() -> Iterator[None]:
    """How good the intervals are is not the question here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "DRAWS", 5)
        yield


Key = tuple[int, int]


class World(crashing.World):
    """A small cluster: runs start, run, and succeed unless they are fated to fail."""

    def __init__(self, study: ScalingStudy, fated: set[Key], deletions: list[int]) -> None:
        super().__init__()
        self.study = study
        self.fated = fated
        self.deletions = deletions
        self.runs: dict[str, TrainingRun] = {}
        self.measured: dict[Key, int] = {}  # times that a run of the key has succeeded
        self.most_at_once = 0

    def decide(self) -> StudyPlan:
        return reconcile_study(StudyObserved(self.study, self.now, tuple(self.runs.values())))

    def over(self) -> bool:
        return self.study.status.phase in FINISHED

    def apply(self, kind: str, value: Any) -> None:
        if kind == "status":
            stored = ScalingStudyStatus.model_validate(value.to_wire())
            self.study = self.study.model_copy(update={"status": stored})
        elif kind == "delete":
            run = self.runs.pop(value, None)
            if run is not None and run.status.phase == "Succeeded":
                number, repeat = key_of(run)
                kept = [m.repeat for m in self.study.status.cells[number - 1].measurements]
                assert repeat in kept, f"{value} was deleted, its figures lost"
        elif value.name not in self.runs:
            self.runs[value.name] = value
        active = [run for run in self.runs.values() if run.status.phase not in FINISHED]
        self.most_at_once = max(self.most_at_once, len(active))

    def tick(self, second: int) -> None:
        """A second passes: each run moves on; a disturbance takes away one that is under way."""
        self.now += timedelta(seconds=1)
        disturbed = second in self.deletions
        for name, run in list(self.runs.items()):
            if run.status.phase is None:
                self.runs[name] = started(run, phase="Running")
            elif run.status.phase == "Running" and disturbed:
                del self.runs[name]
                disturbed = False
            elif run.status.phase == "Running" and key_of(run) in self.fated:
                self.runs[name] = failed(run)
            elif run.status.phase == "Running":
                self.measured[key_of(run)] = self.measured.get(key_of(run), 0) + 1
                self.runs[name] = succeeded(run, 100.0 * key_of(run)[0] + key_of(run)[1])


def play(study: ScalingStudy, fated: set[Key], crashes: list[int], deletions: list[int]) -> World:
    world = World(study, fated, deletions)
    world.play(crashes)
    return world


def outcome(world: World) -> Any:
    """All that the study says, but not when."""
    wire = world.study.status.to_wire()
    for name in ("startTime", "completionTime", "message", "conditions"):
        wire.pop(name)
    return wire


@settings(max_examples=40, deadline=None)
@given(
    repeats=st.integers(min_value=1, max_value=3),
    parallelism=st.integers(min_value=1, max_value=4),
    fated=st.sets(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=2),
    crashes=st.lists(st.integers(min_value=1, max_value=60), max_size=25, unique=True),
    deletions=st.lists(st.integers(min_value=0, max_value=30), max_size=3, unique=True),
)
def test_crash_anywhere(
    repeats: int, parallelism: int, fated: set[Key], crashes: list[int], deletions: list[int]
) -> None:
    study = make_study(
        matrix={"numProcPerNode": [1, 2, 4]}, repeats=repeats, parallelism=parallelism
    )
    calm = play(study, fated, [], [])
    stormy = play(study, fated, crashes, deletions)
    for world in (calm, stormy):
        assert world.most_at_once <= parallelism
        for cell in world.study.status.cells:
            told = [found.repeat for found in cell.measurements]
            assert len(told) == len(set(told)), "a run was counted twice"
            assert {(cell.number, repeat) for repeat in told} <= world.measured.keys()
            assert cell.failure is not None or told == list(range(1, repeats + 1))
        left = {key_of(run) for run in world.runs.values()}
        assert left <= fated, "only failed runs are kept"
        assert all(run.status.phase == "Failed" for run in world.runs.values())
    if parallelism == 1:  # else a failure may come before or after its cell's next run
        assert outcome(stormy) == outcome(calm)
    assert calm.measured.keys() == {key for key, times in calm.measured.items() if times == 1}
    assert stormy.events.keys() >= {"finished"}
