"""A run can always be continued: budgets, failurePolicy, and what restarts a finished run."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.lifecycle.builders import T0, Story, make_report, make_run, make_worker
from trainyard_api.labels import RETRY
from trainyard_api.policy import FailureReason, FailureRule, finds
from trainyard_api.status import CheckpointRef
from trainyard_lifecycle.diagnosis import REASONS, Failure
from trainyard_lifecycle.plan import Plan
from trainyard_lifecycle.policy import DEFAULT_ACTIONS, chosen_action

CONCEPTS = Path(__file__).parents[3] / "docs" / "start" / "concepts.md"
NO_WAIT = {"backoff": {"initialSeconds": 0, "maxSeconds": 0}}


def story_of(**spec: Any) -> Story:
    story = Story(make_run(**({"numNodes": 1} | NO_WAIT | spec)))
    story.see()
    return story


def change(story: Story, **spec: Any) -> None:
    """Apply a changed spec, as `kubectl apply` does."""
    wire = story.run.to_wire()
    wire["spec"] |= spec
    wire["metadata"]["generation"] += 1
    story.run = type(story.run).model_validate(wire)


def fail(story: Story, /, step: int | None = None, saved: int | None = None, **worker: Any) -> Plan:
    """The current attempt's only worker fails; the plan of the reconcile that sees it."""
    attempt = story.run.status.attempt
    if step is not None:
        ref = CheckpointRef(step=saved, digest="sha256:00", time=T0) if saved else None
        report = make_report(attempt, joined=1, step=step, last_checkpoint=ref)
        story.see(make_worker(0, attempt), report=report)
    return story.see(make_worker(0, attempt, phase="Failed", **({"exit_code": 137} | worker)))


CONFIG_ERROR: dict[str, Any] = {
    "exit_code": 78,
    "log_tail": "ConfigError: config.learning_rat: unknown key\n",
}
PREEMPTED: dict[str, Any] = {"disruption": "PreemptionByScheduler"}


def test_a_fixed_spec_brings_a_failed_run_back() -> None:
    story = story_of(config={"learning_rat": 1})
    assert fail(story, **CONFIG_ERROR).status.phase == "Failed"
    assert story.see(after=3600).create == ()  # the same spec fails again: it is not tried
    change(story, config={"learning_rate": 1})
    plan = story.see()
    assert [(key.attempt, key.node) for key in plan.create] == [(2, 0)]
    assert [event.reason for event in plan.events] == ["Continued", "AttemptStarted"]
    assert (plan.status.phase, plan.status.completion_time) == ("Pending", None)
    failed = next(c for c in plan.status.conditions if c.type == "Failed")
    assert (failed.status, failed.message) == ("False", "the spec was changed")


def test_a_spec_that_was_fixed_before_the_failure_was_seen_is_tried() -> None:
    story = story_of(config={"learning_rat": 1})
    story.see(make_worker(0))
    change(story, config={"learning_rate": 1})
    assert fail(story, **CONFIG_ERROR).status.phase == "Failed"
    assert story.see().status.attempt == 2


def test_the_annotation_asks_for_one_attempt_per_value() -> None:
    story = story_of()
    fail(story, **CONFIG_ERROR)
    story.run.metadata.annotations[RETRY] = "1"
    assert story.see().status.attempt == 2
    fail(story, **CONFIG_ERROR)
    assert story.see(after=60).create == ()
    story.run.metadata.annotations[RETRY] = "2"
    assert story.see().status.attempt == 3


def test_an_annotation_that_the_run_was_created_with_asks_for_nothing() -> None:
    run = make_run(numNodes=1)
    run.metadata.annotations[RETRY] = "from a copied manifest"
    story = Story(run)
    story.see()
    fail(story, **CONFIG_ERROR)
    assert story.see().create == ()


def test_the_annotation_ends_a_backoff() -> None:
    story = story_of(backoff={"initialSeconds": 300, "maxSeconds": 300})
    fail(story)
    assert story.see(after=1).create == ()
    story.run.metadata.annotations[RETRY] = "now"
    assert story.see(after=1).status.attempt == 2


def test_a_suspended_run_that_failed_continues_once_it_is_resumed() -> None:
    story = story_of()
    fail(story, **CONFIG_ERROR)
    change(story, suspend=True, config={"learning_rate": 1})
    assert story.see().create == ()
    change(story, suspend=False)
    assert story.see().status.attempt == 2


def test_a_ttl_for_a_failed_run_does_not_start_it() -> None:
    story = story_of(storage={"whenDeleted": "Retain"})
    fail(story, **CONFIG_ERROR)
    change(story, ttlSecondsAfterFinished=60)
    assert story.see(after=1).create == ()
    assert story.see(after=60).delete_run


def test_a_default_that_is_written_out_is_the_same_spec() -> None:
    story = story_of()
    fail(story, **CONFIG_ERROR)
    change(story, maxRestarts=3, checkpoint={"everySteps": 200})
    assert story.see().create == ()


def test_more_restarts_bring_a_run_back_that_had_none_left() -> None:
    story = story_of(maxRestarts=0)
    plan = fail(story)
    assert plan.status.message == "r-1-0: killed by SIGKILL (maxRestarts 0 reached)"
    change(story, maxRestarts=1)
    assert story.see().status.attempt == 2
    assert fail(story).status.phase == "Restarting"


def succeed(story: Story) -> None:
    attempt = story.run.status.attempt
    report = make_report(attempt, joined=1, step=50, total_steps=50)
    done = make_worker(0, attempt, phase="Succeeded", termination_message=report.model_dump_json())
    assert story.see(done).status.phase == "Succeeded"


def test_a_run_that_succeeded_continues_only_for_more_steps() -> None:
    story = story_of(config={"max_steps": 50})
    succeed(story)
    story.run.metadata.annotations[RETRY] = "1"
    assert story.see().create == ()
    change(story, maxRestarts=9)
    assert story.see().create == ()
    change(story, config={"max_steps": 40})
    assert story.see().create == ()
    change(story, config={"max_steps": 60})
    plan = story.see()
    assert plan.status.attempt == 2
    assert plan.events[0].message == "config.max_steps was raised from 50 to 60"
    assert story.run.status.completion_time is None
    succeed(story)
    assert story.see(after=9).create == ()


def test_disruptions_use_up_no_restarts() -> None:
    story = story_of(maxRestarts=0)
    for attempt in range(2, 8):
        plan = fail(story, **PREEMPTED)
        assert (plan.status.phase, plan.status.restarts) == ("Restarting", 0)
        assert story.see(after=600).status.attempt == attempt
    assert story.run.status.disruptions == 6


def test_max_disruptions_limits_them_where_it_is_set() -> None:
    story = story_of(maxDisruptions=1)
    fail(story, **PREEMPTED)
    story.see()
    plan = fail(story, **PREEMPTED)
    assert plan.status.phase == "Failed"
    assert plan.status.message.endswith("(maxDisruptions 1 reached)")


def test_failures_are_not_counted_once_training_has_progressed() -> None:
    story = story_of(maxRestarts=1)
    for step in range(10, 60, 10):
        plan = fail(story, step=step + 5, saved=step)
        assert (plan.status.phase, plan.status.failures) == ("Restarting", 1)
        story.see()
    assert plan.status.restarts == 5
    fail(story, step=57, saved=50)
    assert story.run.status.phase == "Failed"


def test_the_same_failure_at_the_same_step_is_not_tried_a_fourth_time() -> None:
    story = story_of(maxRestarts=100)
    for _ in range(2):
        assert fail(story, step=7).status.phase == "Restarting"
        story.see()
    plan = fail(story, step=7)
    assert plan.status.phase == "Failed"
    assert "the same failure at the same step 3 times in a row" in plan.status.message


@pytest.mark.parametrize(
    "line",
    [
        "HangError: no progress for 20 s: rank 1 (h, pid {}) holds up the others at loop.py:1",
        "RuntimeError: DataLoader worker (pid {}) is killed by signal: Killed. ",
        "RuntimeError: DataLoader worker (pid(s) {}) exited unexpectedly",
        "RuntimeError: Connection closed by peer [127.0.0.1]:{}",
    ],
)
def test_process_ids_and_ports_make_no_other_failure(line: str) -> None:
    story = story_of(maxRestarts=100)
    for pid in (1234, 987, 55555):
        error = json.dumps({"message": line.format(pid)})
        plan = fail(story, step=7, exit_code=1, termination_message=error)
        phase = plan.status.phase
        story.see()
    assert phase == "Failed"
    assert "not tried again" in plan.status.message


def test_a_step_in_the_message_counts_more_than_the_last_one_reported() -> None:
    """Reports are read every few seconds, so they are of other steps each time."""

    def outcome(*lines: str) -> str | None:
        story = story_of(maxRestarts=100)
        for step, line in enumerate(lines):
            error = json.dumps({"message": line})
            phase = fail(story, step=step, exit_code=1, termination_message=error).status.phase
            story.see()
        return phase

    same = "HardwareError: in step 7: CUDA error: uncorrectable ECC error"
    assert outcome(same, same, same) == "Failed"
    assert outcome(same, same, same.replace("7", "8")) == "Restarting"
    assert outcome(*["HardwareError: uncorrectable ECC error"] * 3) == "Restarting"


def test_progress_counts_despite_later_disruptions() -> None:
    story = story_of(maxRestarts=1)
    fail(story, step=10, saved=10)
    story.see()
    for _ in range(12):
        story.see(make_worker(0, story.run.status.attempt, **PREEMPTED))
        story.see()
    assert len(story.run.status.attempts) == 10
    assert fail(story, step=5000, saved=5000).status.phase == "Restarting"


def test_a_retry_by_the_user_resets_the_count_of_failures() -> None:
    story = story_of(maxRestarts=1)
    for _ in range(2):
        fail(story, step=7)
        story.see()
    assert story.run.status.phase == "Failed"
    story.run.metadata.annotations[RETRY] = "1"
    story.see()
    assert fail(story, step=7).status.phase == "Restarting"


def test_a_reason_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="OOMKilled"):
        FailureRule.model_validate({"action": "Ignore", "onReasons": ["OOMKiled"]})


def test_a_condition_about_the_report_ends_with_its_attempt() -> None:
    story = story_of()
    story.see(make_worker(0), report=make_report(joined=1))
    story.see(make_worker(0), after=1)
    plan = fail(story)
    assert "ProgressUnknown" not in [condition.type for condition in plan.status.conditions]


def test_another_step_is_another_failure() -> None:
    story = story_of(maxRestarts=100)
    for step in (7, 7, 8, 7):
        assert fail(story, step=step).status.phase == "Restarting"
        story.see()


def test_the_first_rule_that_applies_decides() -> None:
    rules = [
        {"action": "Fail", "onExitCodes": {"values": [137]}, "onMessage": "SIGTERM"},
        {"action": "Ignore", "onExitCodes": {"values": [137]}, "onReasons": ["Signal"]},
        {"action": "Restart", "onExitCodes": {"values": [1, 2]}},
    ]
    story = story_of(maxRestarts=0, failurePolicy={"rules": rules})
    plan = fail(story)
    assert (plan.status.phase, plan.status.disruptions) == ("Restarting", 1)
    story.see(after=600)
    plan = fail(story, exit_code=2)
    assert plan.status.message.endswith("(maxRestarts 0 reached)")


@pytest.mark.parametrize(
    ("conditions", "applies"),
    [
        ({"onReasons": ["UserException"]}, True),
        ({"onReasons": ["OOMKilled"]}, False),
        ({"onExceptions": ["TimeoutError"]}, True),
        ({"onExceptions": ["ValueError"]}, False),
        ({"onExitCodes": {"values": [1]}}, True),
        ({"onExitCodes": {"operator": "NotIn", "values": [1]}}, False),
        ({"onMessage": "^TimeoutError: .* away$"}, True),
        ({"onMessage": "^the"}, False),
        ({"onMessage": "away", "onReasons": ["OOMKilled"]}, False),
    ],
)
def test_all_conditions_of_a_rule_must_hold(conditions: dict[str, Any], applies: bool) -> None:
    words = "TimeoutError: the store is away"
    failure = Failure("UserException", f"r-1-0: {words}", "r-1-0", 1, "TimeoutError")
    run = make_run(failurePolicy={"rules": [{"action": "Ignore"} | conditions]})
    assert chosen_action(failure, run.spec) == ("Ignore" if applies else "Fail")


@pytest.mark.parametrize("pattern", ["(", "(?=x)", r"(a)\1"])
def test_a_wrong_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        FailureRule.model_validate({"action": "Fail", "onMessage": pattern})


def test_no_pattern_takes_long() -> None:
    assert not finds("^(a+)+$", "a" * 5000 + "b")  # Python's re would need 2**5000 steps


def test_the_docs_have_the_same_table() -> None:
    words = {"Fail": "no", "Restart": "yes", "Ignore": "yes, not counted"}
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in CONCEPTS.read_text().splitlines()
        if line.startswith("| `")
    ]
    table = {row[0]: row[2] for row in rows if row[0] in REASONS | {"GivenBack"}}
    # No rule of failurePolicy can name these: nothing has run, or the time was up.
    fixed = {"GivenBack": "yes, not counted", "Image": "no", "QueueTimeout": "no"}
    fixed |= {"DeadlineExceeded": "no"}
    decided = {reason: words[action] for reason, action in DEFAULT_ACTIONS.items()}
    assert table == decided | fixed
    assert not set(fixed) & set(get_args(FailureReason))


def test_pods_that_wait_are_replaced_when_their_spec_is_fixed() -> None:
    story = story_of(numNodes=2)
    waits = make_worker(1, phase="Pending", unschedulable="0/2 nodes: untolerated taint")
    assert story.see(make_worker(0), waits).status.phase == "Pending"
    change(story, maxRestarts=9, deadlines={"scheduleSeconds": 60})
    assert story.see(make_worker(0), waits).delete == (), "pods are made from nothing of that"
    change(story, podTemplate={"spec": {"tolerations": [{"operator": "Exists"}]}})
    plan = story.see(make_worker(0), waits)
    assert (plan.status.phase, plan.status.reason) == ("Restarting", "SpecChanged")
    assert plan.delete == ("r-1-0", "r-1-1")
    plan = story.see()
    assert [key.attempt for key in plan.create] == [2, 2]
    assert (plan.status.restarts, plan.status.disruptions) == (0, 0)


def test_pods_that_run_keep_the_spec_they_were_made_from() -> None:
    story = story_of()
    story.see(make_worker(0), report=make_report(joined=1))
    change(story, resourcesPerNode={"limits": {"cpu": 4}})
    assert story.see(make_worker(0), report=make_report(joined=1)).status.phase == "Running"


def test_pods_that_were_never_created_are_made_from_the_newest_spec() -> None:
    story = story_of()
    change(story, podTemplate={"spec": {"nodeSelector": {"disk": "ssd"}}})
    plan = story.see()
    assert [key.attempt for key in plan.create] == [1]
    assert story.see(make_worker(0, phase="Pending")).delete == ()
    assert story.run.status.attempts[0].generation == 2
