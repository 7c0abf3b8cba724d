"""What is decided about a study: its runs one after another, failures, suspension, bad specs."""

from datetime import timedelta
from typing import Any

import pytest

from tests.support.lifecycle.builders import T0
from tests.support.study.builders import failed, key_of, make_study, started, succeeded
from trainyard_api import labels
from trainyard_api.run import TrainingRun
from trainyard_api.status import Attempt
from trainyard_api.study import ScalingStudy
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import reconcile_study


class Story:
    """A study over time: each `see` reconciles once, keeps the status, makes and deletes runs."""

    def __init__(self, study: ScalingStudy) -> None:
        self.study = study
        self.runs: dict[str, TrainingRun] = {}
        self.now = T0

    def see(self, *changed: TrainingRun, after: float = 1) -> StudyPlan:
        self.now += timedelta(seconds=after)
        self.runs |= {run.name: run for run in changed}
        plan = reconcile_study(StudyObserved(self.study, self.now, tuple(self.runs.values())))
        self.study = self.study.model_copy(update={"status": plan.status})
        for name in plan.delete:
            del self.runs[name]
        self.runs |= {run.name: run for run in plan.create}
        return plan

    def edit(self, **spec: Any) -> None:
        """As `kubectl patch` does."""
        metadata = self.study.metadata
        update = {"generation": (metadata.generation or 0) + 1}
        self.study = self.study.model_copy(
            update={
                "spec": self.study.spec.model_copy(update=spec),
                "metadata": metadata.model_copy(update=update),
            }
        )


def only(plan: StudyPlan) -> TrainingRun:
    (run,) = plan.create
    return run


def test_every_cell_once_then_every_cell_again_and_finished_runs_go() -> None:
    story = Story(make_study())
    plan = story.see()
    assert plan.status.phase == "Pending"
    keys = []
    while plan.create:
        run = only(plan)
        keys.append(key_of(run))
        plan = story.see(started(run, phase="Running"))
        assert (plan.create, plan.delete, plan.status.phase) == ((), (), "Running")
        plan = story.see(succeeded(run, samples_per_second=100 * key_of(run)[0]))
        assert plan.delete == (run.name,)
    assert keys == [(1, 1), (2, 1), (1, 2), (2, 2)]
    status = plan.status
    assert (status.phase, status.progress, status.reason) == ("Succeeded", "4/4", "Succeeded")
    assert status.headline.startswith("2.00x on 2 (100%), 800 tokens/s; 4: 4.00x projected")
    assert status.completion_time == story.now
    assert story.see().create == ()


def test_a_run_says_what_it_is_of() -> None:
    run = only(Story(make_study()).see())
    assert (run.name, run.namespace) == ("s-1-1", "ns")
    assert run.metadata.labels == {
        labels.STUDY: "s",
        labels.CELL: "1",
        labels.REPEAT: "1",
        labels.MANAGED_BY: labels.MANAGER,
    }


def test_as_many_runs_in_parallel_as_are_allowed() -> None:
    story = Story(make_study(parallelism=3))
    plan = story.see()
    assert [key_of(run) for run in plan.create] == [(1, 1), (2, 1), (1, 2)]
    plan = story.see(succeeded(plan.create[1]))
    assert [key_of(run) for run in plan.create] == [(2, 2)]


def test_a_failed_cell_is_reported_kept_and_not_repeated_while_others_run() -> None:
    story = Story(make_study())
    first = only(story.see())
    plan = story.see(failed(first))
    assert plan.delete == (), "its log says why"
    (event,) = plan.events
    assert (event.type, event.reason) == ("Warning", "CellFailed")
    assert event.message == "numProcPerNode=1; repeat 1: OOMKilled: out of memory"
    assert plan.status.progress == "1/3"
    plan = story.see(succeeded(only(plan)))
    assert key_of(only(plan)) == (2, 2)
    plan = story.see(succeeded(only(plan)))
    status = plan.status
    assert (status.phase, status.reason) == ("Failed", "CellFailed")
    assert status.message == ("1 of 2 cells failed: numProcPerNode=1: OOMKilled: out of memory")
    assert status.cells[0].failure
    assert status.cells[0].failure.run == "s-1-1"
    assert [cell.phase for cell in status.cells] == ["Failed", "Succeeded"]
    assert list(story.runs) == ["s-1-1"]


def with_uid(run: TrainingRun, uid: str) -> TrainingRun:
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": uid})})


def test_a_run_whose_last_report_is_missing_is_run_again_twice() -> None:
    story = Story(make_study(repeats=1))
    plan = story.see()
    for number in (1, 2):
        silent = started(with_uid(only(plan), f"uid-{number}"), phase="Succeeded")
        again = reconcile_study(StudyObserved(story.study, T0, (silent,)))  # and is killed then
        plan = story.see(silent)
        for found in (again, plan):
            assert (found.delete, found.create) == (("s-1-1",), ()), "its name is still taken"
            (event,) = found.events
            assert event.message == (
                "numProcPerNode=1; repeat 1 is run again: it succeeded without reporting its step"
                " times"
            )
        story.see(silent)  # killed before the run was deleted: it counts once
        assert len(story.study.status.cells[0].unreported) == number
        plan = story.see()
    plan = story.see(started(with_uid(only(plan), "uid-3"), phase="Succeeded"))
    failure = plan.status.cells[0].failure
    assert failure
    assert (failure.reason, failure.run) == ("NoReport", "s-1-1")
    assert failure.message == "3 runs succeeded without reporting their step times"
    assert [key_of(run) for run in plan.create] == [(2, 1)]
    assert story.see().delete == (), "its log may say why"


@pytest.mark.parametrize("figures", [True, False])
def test_a_run_that_was_interrupted_is_run_again(figures: bool) -> None:
    """It reports the steps that were left when it resumed, if any were."""
    story = Story(make_study(repeats=1))
    run = with_uid(only(story.see()), "uid-1")
    status = (succeeded(run) if figures else started(run, phase="Succeeded")).status
    status.attempts = [
        Attempt(number=1, start_time=T0),
        Attempt(number=2, start_time=T0, resumed_from_step=40),
    ]
    plan = story.see(run.model_copy(update={"status": status}))
    assert (plan.delete, plan.status.cells[0].failure) == (("s-1-1",), None)
    assert plan.status.cells[0].measurements == []
    assert plan.events[0].message.endswith("it was interrupted, and resumed from step 40")
    assert only(story.see()).name == "s-1-1"


def test_an_attempt_that_began_from_scratch_is_measured() -> None:
    story = Story(make_study(repeats=1))
    run = succeeded(only(story.see()))
    run.status.attempts = [Attempt(number=n, start_time=T0) for n in (1, 2)]
    assert story.see(run).status.cells[0].phase == "Succeeded"


def test_a_run_that_begins_with_anothers_checkpoint_is_measured() -> None:
    template = {"spec": {"recipe": "char-gpt", "startFrom": {"run": "base"}}}
    story = Story(make_study(repeats=1, template=template))
    run = succeeded(only(story.see()))
    run.status.attempts = [Attempt(number=1, start_time=T0, resumed_from_step=5)]
    assert story.see(run).status.cells[0].phase == "Succeeded"


def test_figures_of_a_part_of_the_steps_do_not_count() -> None:
    """The last that was read of a run whose last report was lost."""
    story = Story(make_study(repeats=1))
    run = succeeded(only(story.see()))
    run.status.step, run.status.total_steps = 40, 60
    assert story.see(run).delete == ("s-1-1",)
    run.status.step = 60
    assert story.see(run).status.cells[0].phase == "Succeeded"


def test_a_deleted_run_is_measured_again() -> None:
    story = Story(make_study())
    run = only(story.see())
    story.see(started(run, phase="Running"))
    metadata = run.metadata.model_copy(update={"deletion_timestamp": T0})
    going = started(run, phase="Running").model_copy(update={"metadata": metadata})
    plan = story.see(going)
    assert (plan.create, plan.requeue_after) == ((), 1.0), "its name is still taken"
    del story.runs[run.name]
    assert only(story.see()).name == run.name


def test_suspend_stops_the_runs_under_way_and_continues_later() -> None:
    story = Story(make_study())
    plan = story.see(succeeded(only(story.see())))
    second = started(only(plan), phase="Running")
    story.edit(suspend=True)
    plan = story.see(second)
    assert (plan.delete, plan.create) == ((second.name,), ())
    assert (plan.status.phase, plan.status.progress) == ("Suspended", "1/4")
    assert [event.reason for event in plan.events] == ["Suspended"]
    assert story.see().events == ()
    story.edit(suspend=False)
    plan = story.see()
    assert only(plan).name == second.name
    suspended = next(c for c in plan.status.conditions if c.type == "Suspended")
    assert suspended.status == "False"


def test_a_run_that_ends_as_it_is_suspended_counts() -> None:
    story = Story(make_study())
    run = only(story.see())
    story.edit(suspend=True)
    plan = story.see(succeeded(run))
    assert (plan.status.progress, plan.delete) == ("1/4", (run.name,))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"matrix": {"numProcPerNode": [1, 99]}}, "cell numProcPerNode=99: spec.numProcPerNode"),
        ({"matrix": {"seed": [*range(60)]}, "repeats": 100}, "exceed the maximum of 1000 runs"),
        ({"template": {"spec": {"command": ["a.py"]}}}, "a recipe is required"),
    ],
)
def test_what_makes_no_valid_runs_is_refused_and_nothing_runs(
    spec: dict[str, Any], said: str
) -> None:
    story = Story(make_study(**spec))
    plan = story.see()
    assert (plan.status.phase, plan.status.reason) == ("Failed", "InvalidSpec")
    assert said in plan.status.message
    assert "\n" not in plan.status.message
    assert plan.create == ()
    assert story.see().events == (), "reported once"
    story.edit(template=make_study().spec.template, matrix={"numProcPerNode": [1, 2]}, repeats=1)
    plan = story.see()
    assert (plan.status.phase, only(plan).name) == ("Pending", "s-1-1")


def test_another_matrix_half_way_would_not_compare() -> None:
    """CEL can't see into the matrix, so that it is the operator that notices."""
    story = Story(make_study())
    plan = story.see(succeeded(only(story.see())))
    running, before = started(only(plan), phase="Running"), story.study.spec.matrix
    story.edit(matrix={"numProcPerNode": [1, 2, 4]})
    plan = story.see(running)
    assert (plan.status.phase, plan.status.reason) == ("Suspended", "SpecChanged")
    assert plan.delete == (running.name,)
    assert len(plan.status.cells) == 2
    story.edit(matrix=before)
    assert only(story.see()).name == running.name


def test_cells_that_only_another_version_can_make_stop_nothing() -> None:
    story = Story(make_study(repeats=1, parallelism=2))
    one, two = story.see().create
    template = story.study.spec.template
    template.spec["novelty"] = 1
    story.study.status.fingerprint = story.study.spec.fingerprint()  # as the other version wrote it
    plan = story.see(succeeded(one), started(two, phase="Running"))
    assert (plan.delete, plan.create) == ((one.name,), ()), "its figures are recorded"
    status = plan.status
    assert (status.phase, status.reason, status.progress) == ("Running", "Measuring", "1/2")
    del story.runs[two.name]
    plan = story.see()
    assert (plan.create, plan.delete, plan.status.phase) == ((), (), "Running")
    assert "can't create the remaining runs: spec.novelty: unknown key" in plan.status.message
    del template.spec["novelty"]
    story.study.status.fingerprint = story.study.spec.fingerprint()
    plan = story.see()
    assert only(plan).name == two.name
    unsupported = next(c for c in plan.status.conditions if c.type == "Unsupported")
    assert (unsupported.status, unsupported.reason) == ("False", "Supported")


def test_a_price_and_sizes_to_project_to_may_come_later() -> None:
    story = Story(make_study(repeats=1))
    plan = story.see()
    while plan.create:
        plan = story.see(succeeded(only(plan), 100 * key_of(only(plan))[0]))
    assert plan.status.cells[0].cost_per_million is None
    cost = make_study(cost={"perProcessHour": 3.6}).spec.cost
    story.edit(cost=cost, project_to=[32])
    status = story.see().status
    assert status.cells[0].cost_per_million == pytest.approx(0.001 * 1e6 / 400)
    assert [(p.processes, p.source) for p in status.curves[0].points] == [
        (1, "measured"),
        (2, "measured"),
        (32, "projected"),
    ]


def test_a_study_that_is_being_deleted_is_left_alone() -> None:
    study = make_study()
    study.metadata.deletion_timestamp = T0
    assert reconcile_study(StudyObserved(study, T0)) == StudyPlan(study.status)


def test_a_pending_run_says_what_it_waits_for() -> None:
    story = Story(make_study())
    run = only(story.see())
    plan = story.see(started(run, phase="Pending", message="no node has 8 GPUs"))
    assert plan.status.phase == "Pending"
    assert plan.status.message == "numProcPerNode=1; repeat 1: Pending: no node has 8 GPUs"
