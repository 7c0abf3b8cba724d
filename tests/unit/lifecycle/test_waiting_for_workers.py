"""What is waited for, and what is not: workers that save, reports that don't come, sidecars."""

from datetime import timedelta

from tests.support.lifecycle.builders import make_report, make_worker
from tests.unit.lifecycle.test_policy import PREEMPTED, story_of
from tests.unit.lifecycle.test_reconcile import keys, started_story
from trainyard_api.labels import RETRY
from trainyard_api.progress import Extremes, Usage
from trainyard_api.status import TrainingRunStatus


def test_the_next_attempt_waits_for_workers_that_save() -> None:
    story = story_of(numNodes=2)
    story.see(make_worker(0), make_worker(1))
    plan = story.see(make_worker(0), make_worker(1, **PREEMPTED))
    assert plan.delete == ("r-1-0", "r-1-1")
    saving = make_worker(0, deleting=True, gone_by=story.now + timedelta(seconds=30))
    plan = story.see(saving, after=20)
    assert plan.create == ()
    cause, _, text = plan.status.message.partition("; ")
    assert cause == "r-1-1: preempted from node host1 by a pod of higher priority"
    assert text == "attempt 2 starts when the last one has ended: 1 worker left"
    assert story.see(after=1).status.attempt == 2


def test_an_executor_killed_before_it_deleted_costs_no_step() -> None:
    """The next plan deletes what the one that ended the attempt should have."""
    story = story_of(numNodes=2)
    story.see(make_worker(0), make_worker(1))
    story.see(make_worker(0), make_worker(1, **PREEMPTED))
    plan = story.see(make_worker(0), after=30)
    assert (plan.delete, plan.create) == (("r-1-0",), ())
    saving = make_worker(0, deleting=True, gone_by=story.now + timedelta(seconds=30))
    assert story.see(saving, after=1).create == ()
    assert story.see(after=1).status.attempt == 2


def test_a_retry_waits_for_workers_that_save() -> None:
    story = story_of(numNodes=2, maxDisruptions=0)
    story.see(make_worker(0), make_worker(1))
    plan = story.see(make_worker(0), make_worker(1, **PREEMPTED))
    assert plan.status.phase == "Failed"
    story.run.metadata.annotations[RETRY] = "1"
    saving = make_worker(0, deleting=True, gone_by=story.now + timedelta(seconds=30))
    for _ in range(2):
        plan = story.see(saving, after=1)
        assert (plan.status.phase, plan.create) == ("Failed", ())
        text = "retried on request; attempt 2 starts when the last one has ended: 1 worker left"
        assert plan.status.message == text
        assert plan.requeue_after
    assert story.see(after=1).status.attempt == 2


def test_a_worker_that_is_overdue_holds_up_nothing() -> None:
    story = story_of(numNodes=2)
    story.see(make_worker(0), make_worker(1))
    story.see(make_worker(0), make_worker(1, **PREEMPTED))
    stuck = make_worker(0, deleting=True, gone_by=story.now + timedelta(seconds=30))
    assert story.see(stuck, after=39).create == ()
    assert story.see(stuck, after=1).status.attempt == 2


def test_a_report_that_cannot_be_fetched_fails_nothing() -> None:
    story = story_of(deadlines={"joinSeconds": 60})
    story.see(make_worker(0))
    assert story.see(make_worker(0), after=60).status.phase == "Starting"
    plan = story.see(make_worker(0), after=1)
    assert (plan.status.phase, plan.status.reason) == ("Running", "ProgressUnknown")
    unknown = next(c for c in plan.status.conditions if c.type == "ProgressUnknown")
    assert unknown.status == "True"
    plan = story.see(make_worker(0), after=1, report=make_report(joined=1, step=3))
    unknown = next(c for c in plan.status.conditions if c.type == "ProgressUnknown")
    assert (unknown.status, plan.status.step) == ("False", 3)


def test_one_unanswered_request_is_not_unknown_progress() -> None:
    story = story_of()
    story.see(make_worker(0), report=make_report(joined=1))
    for after, status in ((1, "Unknown"), (29, "Unknown"), (1, "True"), (60, "True")):
        plan = story.see(make_worker(0), after=after)
        unknown = next(c for c in plan.status.conditions if c.type == "ProgressUnknown")
        assert (plan.status.phase, unknown.status) == ("Running", status)


def test_a_script_whose_agent_answers_has_no_unknown_progress() -> None:
    """It has reported nothing, as most scripts don't; what can't be fetched is another thing."""
    story = story_of(recipe=None, image="x", command=["train.py"])
    for _ in range(3):
        plan = story.see(make_worker(0), after=60)
        assert plan.status.message == "progress unknown: no report"
    assert "ProgressUnknown" not in [condition.type for condition in plan.status.conditions]

    for after in (1, 31):
        plan = story.see(make_worker(0), after=after, report_error="no connection")
    unknown = next(c for c in plan.status.conditions if c.type == "ProgressUnknown")
    assert (plan.status.phase, unknown.status) == ("Running", "True")
    assert "no connection; progress of a script needs the agent" in plan.status.message

    plan = story.see(make_worker(0), after=1, report=make_report(joined=1, step=3))
    unknown = next(c for c in plan.status.conditions if c.type == "ProgressUnknown")
    assert (unknown.status, plan.status.step, plan.status.message) == ("False", 3, "")


def test_what_a_silent_script_uses_is_no_progress() -> None:
    story = story_of(recipe=None, image="x", command=["train.py"], numNodes=2)
    workers = make_worker(0), make_worker(1)
    story.see(*workers)
    cores = Extremes(lowest=0.21, lowest_rank=1, highest=1.0, highest_rank=0)
    memory = Extremes(lowest=2.3e9, lowest_rank=0, highest=2.31e9, highest_rank=1)
    share = Extremes(lowest=0.97, lowest_rank=0, highest=0.97, highest_rank=0)
    usage = Usage(ranks=2, cpu_cores=cores, memory_bytes=memory, gpu_utilization=share)
    report = make_report(joined=0, peak_memory_bytes=2**30, usage=usage)
    status = story.see(*workers, after=5, report=report).status
    assert (status.phase, status.reason) == ("Running", "PodsRunning")
    assert status.message == "progress unknown: no report"
    assert status.peak_memory_bytes == 2**30
    assert status.usage == (
        "2 ranks: CPU cores 0.2 (rank 1) to 1.0 (rank 0),"
        " memory 2.1 GiB (rank 0) to 2.2 GiB (rank 1), GPU 97%"
    )

    assert story.see(*workers, after=5, report=report).status == status  # nothing to write
    ended = [make_worker(node, phase="Failed", exit_code=1) for node in (0, 1)]
    status = story.see(*ended, after=1).status
    assert (status.usage, status.peak_memory_bytes) == ("", 2**30)


def test_a_hang_of_a_script_is_said_until_it_works_again() -> None:
    story = story_of(recipe=None, image="x", command=["train.py"])
    story.see(make_worker(0))
    message = "no progress for 300 s: rank 0 waits at train.py:9 main"
    hung = make_report(joined=1, hang=message)
    plan = story.see(make_worker(0), after=5, report=hung)
    assert (plan.status.phase, plan.status.reason, plan.status.message) == (
        "Running",
        "Hang",
        message,
    )
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "Hang")]
    assert hanging(plan.status) == "True"

    assert story.see(make_worker(0), after=5, report=hung).events == ()  # said once
    plan = story.see(make_worker(0), after=5, report=make_report(joined=1))
    assert plan.status.message == "progress unknown: no report"
    assert hanging(plan.status) == "False"
    assert story.see(make_worker(0), after=5, report=hung).events != ()  # another one

    plan = story.see(make_worker(0, phase="Failed", exit_code=1), after=1)
    assert hanging(plan.status) is None


def hanging(status: TrainingRunStatus) -> str | None:
    return next((c.status for c in status.conditions if c.type == "Hanging"), None)


def test_a_sidecar_that_outlives_the_trainer_is_deleted() -> None:
    story = story_of()
    story.see(make_worker(0))
    done = make_worker(0, phase="Succeeded", lingering=True)
    plan = story.see(done)
    assert (plan.status.phase, plan.delete) == ("Succeeded", ("r-1-0",))


def test_a_gang_that_cannot_be_created_whole_holds_no_resources() -> None:
    """A quota has room for one of two pods, and another team may need just that one."""
    story = started_story()
    for after in (1, 29):
        plan = story.see(make_worker(0), after=after)
        assert keys(plan) == [(1, 1)]
        # What the executor writes when the API server refuses the pod.
        story.run.status.phase, story.run.status.reason = "Pending", "Rejected"
        story.run.status.message = "exceeded quota"
    plan = story.see(make_worker(0), after=1)
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "GivenBack")
    assert "1 of 2 workers could be created: exceeded quota" in plan.status.message
    assert plan.delete == ("r-1-0",)
    assert keys(story.see(after=10)) == [(2, 0), (2, 1)]


def test_an_elastic_run_continues_with_the_nodes_a_quota_allows() -> None:
    story = started_story(elastic={"minNodes": 1, "maxNodes": 2})
    story.see(make_worker(0), after=1)
    story.run.status.reason = "Rejected"
    story.see(make_worker(0), after=30)
    assert keys(story.see(after=10)) == [(2, 0)]
