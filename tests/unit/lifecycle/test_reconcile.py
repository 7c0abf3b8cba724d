"""reconcile, by example: each test is one story of a run."""

from datetime import timedelta
from typing import Any

import pytest

from tests.support.lifecycle.builders import T0, Story, make_report, make_run, make_worker
from trainyard_api.status import CheckpointRef
from trainyard_lifecycle.plan import Plan


def started_story(**spec: Any) -> Story:
    """A story whose first attempt was decided on and whose two workers exist."""
    story = Story(make_run(**spec))
    story.see()
    return story


def pair(attempt: int = 1, **fields: Any) -> list[Any]:
    return [make_worker(node, attempt, **fields) for node in range(2)]


def keys(plan: Plan) -> list[tuple[int, int]]:
    return [(key.attempt, key.node) for key in plan.create]


def test_a_new_run_starts_attempt_one() -> None:
    story = Story(make_run())
    plan = story.see()
    assert keys(plan) == [(1, 0), (1, 1)]
    assert plan.status.phase == "Pending"
    assert [event.reason for event in plan.events] == ["AttemptStarted"]


def test_only_missing_workers_are_created() -> None:
    story = started_story()
    assert keys(story.see(make_worker(0))) == [(1, 1)]
    assert keys(story.see(*pair())) == []


def test_running_only_once_every_rank_has_joined() -> None:
    story = started_story()
    assert story.see(*pair()).status.phase == "Starting"
    assert story.see(*pair(), report=make_report(joined=0)).status.phase == "Starting"
    assert story.see(*pair(), report=make_report(joined=1)).status.phase == "Starting"
    plan = story.see(*pair(), report=make_report(joined=2, step=7, total_steps=50, loss=3.20000004))
    assert plan.status.phase == "Running"
    assert (plan.status.progress, plan.status.loss, plan.status.world_size) == ("7/50", 3.2, 2)
    assert story.see(*pair()).status.phase == "Running"  # one unanswered poll changes nothing


def test_a_report_of_an_older_attempt_is_ignored() -> None:
    story = started_story()
    story.see(*pair(phase="Failed", exit_code=137))
    story.see(after=10)
    plan = story.see(*pair(2), report=make_report(attempt=1, step=9))
    assert plan.status.phase == "Starting"
    assert plan.status.step is None


def test_a_users_script_is_running_once_its_containers_are() -> None:
    story = started_story(command=["train.py"])
    assert story.see(*pair(phase="Pending")).status.phase == "Pending"
    plan = story.see(*pair())
    assert (plan.status.phase, plan.status.progress) == ("Running", "")
    assert "unknown" in plan.status.message


@pytest.mark.parametrize(
    ("fields", "reason", "text"),
    [
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "Back-off pulling x:1"},
         "Image", "Back-off pulling x:1"),
        ({"unschedulable": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."},
         "Scheduling", "Insufficient nvidia.com/gpu"),
        ({"unschedulable": 'persistentvolumeclaim "data" not found'}, "Volume", '"data" not found'),
        ({"warning": "FailedMount: MountVolume.SetUp failed"}, "Volume", "MountVolume"),
        ({"waiting_reason": "CreateContainerConfigError", "waiting_message": "no secret"},
         "Container", "no secret"),
        ({"waiting_reason": "ContainerCreating"}, "Creating", "being created"),
    ],
)  # fmt: skip
def test_pending_says_why(fields: dict[str, Any], reason: str, text: str) -> None:
    story = started_story()
    plan = story.see(make_worker(0), make_worker(1, phase="Pending", **fields))
    assert (plan.status.phase, plan.status.reason) == ("Pending", reason)
    assert text in plan.status.message
    assert "1 of 2 workers are running" in plan.status.message


def test_a_retryable_failure_starts_the_next_attempt_after_the_backoff() -> None:
    story = started_story(backoff={"initialSeconds": 10, "maxSeconds": 60})
    story.see(*pair(), report=make_report())
    dead = [make_worker(0), make_worker(1, phase="Failed", exit_code=137)]
    plan = story.see(*dead)
    assert plan.status.phase == "Restarting"
    assert plan.status.restarts == 1
    assert plan.delete == ("r-1-0",)
    assert plan.create == ()
    assert plan.status.message == "r-1-1: killed by SIGKILL; attempt 2 starts in 10 s"
    assert story.see(*dead, after=5).create == ()
    plan = story.see(dead[1], after=6)
    assert keys(plan) == [(2, 0), (2, 1)]
    assert plan.delete == ()  # the failed pod stays for its log
    assert story.see(dead[1], *pair(2)).status.restarts == 1


def test_backoff_doubles_up_to_its_cap() -> None:
    story = started_story(maxRestarts=4, backoff={"initialSeconds": 10, "maxSeconds": 35})
    waits = []
    for attempt in range(1, 5):
        plan = story.see(*pair(attempt, phase="Failed", exit_code=137))
        waits.append(plan.requeue_after)
        story.see(after=36)
    assert waits == [10, 20, 35, 35]


def test_max_restarts_ends_the_run() -> None:
    story = started_story(maxRestarts=1)
    story.see(*pair(phase="Failed", exit_code=137))
    story.see(after=6)
    plan = story.see(*pair(2, phase="Failed", exit_code=137))
    assert (plan.status.phase, plan.status.restarts) == ("Failed", 1)
    assert "maxRestarts 1 reached" in plan.status.message


def test_a_users_exception_is_reported_and_not_retried() -> None:
    story = started_story()
    trace = "Traceback (most recent call last):\n  File 'x'\nValueError: no such label\n"
    plan = story.see(make_worker(0), make_worker(1, phase="Failed", exit_code=1, log_tail=trace))
    assert (plan.status.phase, plan.status.reason) == ("Failed", "UserException")
    assert plan.status.message == "r-1-1: ValueError: no such label"
    assert plan.delete == ("r-1-0",)
    assert story.see(make_worker(1, phase="Failed"), after=999).create == ()


def test_a_lost_peer_waits_for_the_real_cause() -> None:
    story = started_story()
    words = '{"message": {"message": "RuntimeError: Connection closed by peer"}}'
    first = make_worker(0, phase="Failed", exit_code=1, termination_message=words, finished_at=T0)
    plan = story.see(first, make_worker(1), after=1)
    assert plan.status.phase != "Restarting"
    lost = make_worker(1, deleting=True, disruption="DeletionByTaintManager")
    plan = story.see(first, lost, after=20)
    assert (plan.status.reason, plan.delete) == ("NodeLost", ())


def test_a_hang_is_reported_while_its_node_may_turn_out_to_be_lost() -> None:
    story = started_story()
    said = "rank 1 (host1, pid 7) does not respond: no heartbeat for 20 s"
    words = f'{{"message": {{"message": "HangError: {said}"}}}}'
    first = make_worker(0, phase="Failed", exit_code=1, termination_message=words, finished_at=T0)
    plan = story.see(first, make_worker(1), after=1)
    assert plan.status.phase != "Restarting"
    assert plan.status.message == f"r-1-0: {said}"
    ended = make_worker(1, phase="Failed", exit_code=137, finished_at=T0)
    plan = story.see(first, ended, after=1)
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "Hang")


def test_a_lost_peer_is_the_cause_when_no_other_appears_in_time() -> None:
    story = started_story()
    words = '{"message": {"message": "RuntimeError: Connection closed by peer"}}'
    first = make_worker(0, phase="Failed", exit_code=1, termination_message=words, finished_at=T0)
    assert story.see(first, make_worker(1), after=60).status.reason != "PeerLost"
    assert story.see(first, make_worker(1), after=6).status.reason == "PeerLost"


def test_a_lost_node_is_the_cause_although_its_peer_failed_a_minute_before() -> None:
    story = started_story()
    words = '{"message": {"message": "RuntimeError: Connection closed by peer"}}'
    first = make_worker(0, phase="Failed", exit_code=1, termination_message=words, finished_at=T0)
    story.see(first, make_worker(1))
    plan = story.see(first, make_worker(1), after=60, lost=frozenset({"host1"}))
    assert plan.status.reason == "NodeLost"


def test_pods_that_stay_terminating_do_not_hold_up_the_next_attempt() -> None:
    story = started_story()
    zombie = make_worker(1, deleting=True, disruption="DeletionByTaintManager")
    story.see(make_worker(0), zombie)
    plan = story.see(zombie, after=6)
    assert keys(plan) == [(2, 0), (2, 1)]
    assert plan.delete == ()
    done = [make_worker(node, 2, phase="Succeeded") for node in range(2)]
    assert story.see(zombie, *done).status.phase == "Succeeded"


def test_a_worker_on_a_node_that_is_not_ready_is_lost() -> None:
    story = started_story()
    plan = story.see(*pair(), lost=frozenset({"host1"}))
    assert plan.status.reason == "NodeLost"


def test_a_created_worker_that_vanished_was_deleted() -> None:
    story = started_story()
    story.see(*pair())
    assert story.see(make_worker(0)).status.reason == "PodDeleted"


def test_success_takes_the_final_report_from_the_termination_message() -> None:
    story = started_story()
    checkpoint = CheckpointRef(step=50, digest="sha256:00", time=T0)
    final = make_report(step=50, total_steps=50, loss=1.5, last_checkpoint=checkpoint)
    workers = [
        make_worker(0, phase="Succeeded", termination_message=final.model_dump_json(by_alias=True)),
        make_worker(1, phase="Succeeded"),
    ]
    plan = story.see(*workers, after=75)
    status = plan.status
    assert (status.phase, status.progress, status.loss) == ("Succeeded", "50/50", 1.5)
    assert status.last_checkpoint == checkpoint
    assert status.message == "finished in 1m15s"
    again = story.see(*workers)
    assert (again.create, again.delete, again.events) == ((), (), ())


def test_a_gang_that_cannot_be_scheduled_is_retried() -> None:
    story = started_story(startDeadlineSeconds=60, maxRestarts=0)
    half = [make_worker(0), make_worker(1, phase="Pending", unschedulable="0/1 nodes available")]
    story.see(*half)
    assert story.see(*half, after=59).delete == ()
    plan = story.see(*half, after=2)
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "GivenBack")
    assert plan.delete == ("r-1-0", "r-1-1")
    assert plan.status.restarts == 0  # it never ran: not a failure of the run
    assert keys(story.see(after=10)) == [(2, 0), (2, 1)]


def test_an_elastic_run_continues_with_the_nodes_available() -> None:
    story = started_story(startDeadlineSeconds=60, elastic={"minNodes": 1, "maxNodes": 2})
    half = [make_worker(0), make_worker(1, phase="Pending", unschedulable="0/1 nodes available")]
    story.see(*half)
    story.see(*half, after=61)
    plan = story.see(after=10)
    assert keys(plan) == [(2, 0)]
    assert plan.status.nodes == 1
    assert story.see(make_worker(0, 2)).status.phase == "Starting"


def test_a_missing_image_is_waited_for_without_holding_resources() -> None:
    story = started_story(deadlines={"startSeconds": 60}, maxRestarts=0)
    stuck = pair(phase="Pending", waiting_reason="ImagePullBackOff", waiting_message="x:1")
    story.see(*stuck)
    assert story.see(*stuck, after=59).status.phase == "Pending"
    plan = story.see(*stuck, after=2)
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "GivenBack")
    assert "x:1" in plan.status.message
    assert plan.delete == ("r-1-0", "r-1-1")
    assert keys(story.see(after=10)) == [(2, 0), (2, 1)]


def test_a_gang_in_a_queue_waits_for_ever_and_its_time_there_does_not_count() -> None:
    story = started_story(activeDeadlineSeconds=100)
    gated = pair(phase="Pending", gated=True, host="")
    plan = story.see(*gated, after=90_000)
    assert (plan.status.phase, plan.status.reason, plan.delete) == ("Pending", "Queued", ())
    waiting = pair(phase="Pending", host="", unschedulable="no room")
    assert story.see(*waiting, after=1).status.reason == "Scheduling"
    assert story.see(*waiting, after=599).status.phase == "Pending"
    assert story.see(*pair(), after=1, report=make_report()).status.phase == "Running"
    assert story.see(*pair(), after=100).status.phase == "Running"
    assert story.see(*pair(), after=1).status.reason == "DeadlineExceeded"


def test_a_queue_that_admits_too_late_stops_the_run_where_that_was_asked_for() -> None:
    story = started_story(deadlines={"queueSeconds": 60})
    plan = story.see(*pair(phase="Pending", gated=True, host=""), after=61)
    assert (plan.status.phase, plan.status.reason) == ("Failed", "QueueTimeout")


def test_an_invalid_image_name_fails_at_once() -> None:
    plan = started_story().see(*pair(phase="Pending", waiting_reason="InvalidImageName"))
    assert (plan.status.phase, plan.status.reason) == ("Failed", "Image")


def test_ranks_that_never_join_are_a_failed_attempt() -> None:
    story = started_story(startDeadlineSeconds=60)
    story.see(*pair())
    plan = story.see(*pair(), after=61, report=make_report(joined=1))
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "StartTimeout")
    assert "1 of 2 ranks have joined" in plan.status.message


def test_suspend_stops_the_pods_and_resume_starts_the_next_attempt() -> None:
    story = started_story()
    story.see(*pair(), report=make_report())
    story.run.spec.suspend = True
    plan = story.see(*pair(), after=30)
    assert (plan.status.phase, plan.status.active_seconds) == ("Suspended", 30)
    assert plan.delete == ("r-1-0", "r-1-1")
    assert story.see().create == ()
    story.run.spec.suspend = False
    plan = story.see(after=3600)
    assert keys(plan) == [(2, 0), (2, 1)]
    assert plan.status.restarts == 0


def test_a_checkpoint_saved_while_pods_stop_is_recorded() -> None:
    story = started_story()
    story.see(*pair(), report=make_report())
    story.run.spec.suspend = True
    story.see(*pair())
    saved = CheckpointRef(step=7, digest="sha256:" + "0" * 64, time=T0)
    plan = story.see(*pair(), report=make_report(last_checkpoint=saved))
    assert plan.status.last_checkpoint == saved
    assert story.see().status.last_checkpoint == saved


def test_a_run_created_suspended_creates_no_pods() -> None:
    plan = Story(make_run(suspend=True)).see()
    assert (plan.status.phase, plan.create) == ("Suspended", ())


def test_suspended_time_does_not_count_towards_the_deadline() -> None:
    story = started_story(activeDeadlineSeconds=100)
    story.see(*pair())
    story.run.spec.suspend = True
    story.see(*pair(), after=60)
    story.run.spec.suspend = False
    story.see(after=3600)
    assert story.see(*pair(2)).status.phase == "Starting"
    assert story.see(*pair(2), after=30).status.phase == "Starting"
    plan = story.see(*pair(2), after=20)
    assert (plan.status.phase, plan.status.reason) == ("Failed", "DeadlineExceeded")
    assert plan.delete == ("r-2-0", "r-2-1")


def test_the_next_reconcile_is_at_the_deadline_at_the_latest() -> None:
    story = Story(make_run(activeDeadlineSeconds=2))
    assert story.see().requeue_after == pytest.approx(1.0)
    story.see(*pair(), report=make_report())
    plan = story.see(*pair(), after=1.5, report=make_report())
    assert plan.requeue_after == pytest.approx(0.6)


def test_ttl_deletes_the_finished_run() -> None:
    story = started_story(ttlSecondsAfterFinished=60, storage={"whenDeleted": "Retain"})
    done = pair(phase="Succeeded")
    assert story.see(*done).requeue_after == 60
    assert not story.see(*done, after=59).delete_run
    assert story.see(*done, after=1).delete_run


def test_a_changed_number_of_nodes_resizes_once_the_step_is_saved() -> None:
    story = started_story()
    story.see(*pair(), report=make_report())
    story.run.spec.num_nodes = 3
    plan = story.see(*pair())
    assert (plan.create, plan.delete) == ((), ("r-1-0", "r-1-1"))
    assert plan.status.attempts[0].outcome == "Resized"
    saving = pair(deleting=True, gone_by=story.now + timedelta(seconds=30))
    assert story.see(*saving, after=10).create == ()
    plan = story.see(after=1)
    assert keys(plan) == [(2, 0), (2, 1), (2, 2)]
    assert plan.status.restarts == 0


def test_a_run_being_deleted_is_left_alone() -> None:
    story = started_story()
    story.run.metadata.deletion_timestamp = T0
    plan = story.see(*pair(phase="Failed", exit_code=137))
    assert (plan.create, plan.delete, plan.events, plan.requeue_after) == ((), (), (), None)


def test_history_keeps_the_newest_ten_attempts() -> None:
    story = started_story(maxRestarts=20, backoff={"initialSeconds": 0, "maxSeconds": 0})
    for attempt in range(1, 15):
        story.see(*pair(attempt, phase="Failed", exit_code=137))
        story.see(after=1)
    numbers = [attempt.number for attempt in story.run.status.attempts]
    assert numbers == list(range(6, 16))


def test_transition_times_change_only_with_the_status() -> None:
    story = started_story()
    story.see(*pair(), report=make_report(), after=5)
    story.see(*pair(), report=make_report(), after=5)
    running = next(c for c in story.run.status.conditions if c.type == "Running")
    assert (running.status, running.last_transition_time) == ("True", T0 + timedelta(seconds=5))
