"""storage.whenDeleted changes while the run exists: the claim follows, whatever the run does."""

from typing import Any

import pytest

from tests.support.lifecycle.builders import T0, Story, make_run, make_worker
from trainyard_lifecycle.plan import Plan
from trainyard_lifecycle.policy import spec_digest

RETAIN = {"storage": {"whenDeleted": "Retain"}}
DELETE = {"storage": {"whenDeleted": "Delete"}}


def story_of(**spec: Any) -> Story:
    """A run on one node whose only worker runs."""
    story = Story(make_run(numNodes=1, **spec))
    story.see()
    story.see(make_worker(0))
    return story


def change(story: Story, **spec: Any) -> None:
    """`kubectl patch` of the spec."""
    wire = story.run.to_wire()
    wire["spec"] |= spec
    wire["metadata"]["generation"] += 1
    story.run = type(story.run).model_validate(wire)


def follow(story: Story, plan: Plan) -> None:
    """What an executor does once it has changed the claim's owner."""
    status = story.run.status.model_copy(update={"when_deleted": plan.claim})
    story.run = story.run.model_copy(update={"status": status})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "Delete"),
        (DELETE, "Delete"),
        (RETAIN, "Retain"),
        ({"storage": {"size": "1Gi"}}, "Delete"),
    ],
)
def test_a_new_claim_is_made_as_the_spec_says(spec: dict[str, Any], said: str) -> None:
    plan = Story(make_run(**spec)).see()
    assert plan.create
    assert (plan.status.when_deleted, plan.claim) == (said, None)


def test_when_deleted_is_empty_for_a_users_own_claim_or_before_there_is_one() -> None:
    mine = story_of(storage={"claimName": "mine"})
    assert (mine.run.status.when_deleted, mine.see(make_worker(0)).claim) == (None, None)
    suspended = Story(make_run(suspend=True))
    assert (suspended.see().claim, suspended.run.status.when_deleted) == (None, None)
    change(suspended, **RETAIN)
    assert (suspended.see().claim, suspended.run.status.when_deleted) == (None, None)
    change(suspended, suspend=False)
    assert (suspended.see().claim, suspended.run.status.when_deleted) == (None, "Retain")


def test_a_change_is_carried_out_once() -> None:
    story = story_of()
    change(story, **RETAIN)
    plan = story.see(make_worker(0))
    assert (plan.claim, plan.status.when_deleted) == ("Retain", "Changing")
    assert (plan.create, plan.delete) == ((), ()), "training is not disturbed"
    follow(story, plan)
    plan = story.see(make_worker(0))
    assert (plan.claim, plan.status.when_deleted) == (None, "Retain")


def test_a_change_back_is_carried_out_while_the_first_one_may_have_been() -> None:
    story = story_of()
    change(story, **RETAIN)
    assert story.see(make_worker(0)).claim == "Retain"  # and the operator dies here
    change(story, **DELETE)
    assert story.see(make_worker(0)).claim == "Delete"


def test_a_finished_run_keeps_its_claim_and_is_not_started_again() -> None:
    story = story_of()
    story.see(make_worker(0, phase="Failed", exit_code=78, log_tail="ConfigError: no\n"))
    assert story.run.status.phase == "Failed"
    change(story, **RETAIN)
    plan = story.see()
    assert (plan.claim, plan.create, plan.status.phase) == ("Retain", (), "Failed")
    assert plan.requeue_after, "a refusal by the API server is not the end"


def test_the_ttl_waits_until_the_claim_has_followed() -> None:
    story = story_of(ttlSecondsAfterFinished=60, **DELETE)
    story.see(make_worker(0, phase="Succeeded"))
    change(story, **RETAIN)
    plan = story.see(after=60)
    assert (plan.claim, plan.delete_run) == ("Retain", False)
    assert plan.requeue_after
    follow(story, plan)
    assert story.see().delete_run


def test_a_run_being_deleted_is_left_alone() -> None:
    story = story_of()
    change(story, **RETAIN)
    story.run.metadata.deletion_timestamp = T0
    assert story.see(make_worker(0)).claim is None


@pytest.mark.parametrize(
    ("spec", "claim", "said"), [(RETAIN, "Retain", "Changing"), (DELETE, None, "Delete")]
)
def test_of_a_run_that_an_older_operator_started(
    spec: dict[str, Any], claim: str | None, said: str
) -> None:
    """Its claim may be one that an earlier run left: only to retain it destroys nothing."""
    story = story_of(**spec)
    story.run.status.when_deleted = None
    plan = story.see(make_worker(0))
    assert (plan.claim, plan.status.when_deleted) == (claim, said)


def test_attempts_do_not_depend_on_it() -> None:
    sized = {"storage": {"size": "1Gi"}}
    digests = {
        name: spec_digest(make_run(**spec).spec)
        for name, spec in {
            "plain": {},
            "retained": RETAIN,
            "sized": sized,
            "sized, retained": {"storage": {"size": "1Gi", "whenDeleted": "Retain"}},
        }.items()
    }
    assert digests["plain"] == digests["retained"] != digests["sized"]
    assert digests["sized"] == digests["sized, retained"]
