"""Every fault of the corpus, decided by the pure policy: what is seen of it, its root cause, what
follows, and that the remedy brings the run back.
"""

from typing import Any

import pytest

from tests.faults.corpus import Fault, Seen, faults, says
from tests.faults.observed import worker
from tests.support.lifecycle.builders import Story, make_report, make_run, make_worker
from trainyard_api.labels import RETRY
from trainyard_lifecycle.plan import Plan, Worker

LATER = 86_400.0  # seconds; longer than every deadline and every backoff
SEEN = [fault for fault in faults() if fault.case.seen]
PHASES = {
    "stop": ("Failed",),
    "restart": ("Restarting",),
    "restart, not counted": ("Restarting",),
    "wait": ("Pending", "Starting"),
    "continue": ("Running", "Succeeded"),
}


class Told(Story):
    """The story of one fault: a run of two ranks on each node, and what is seen of its pods."""

    def __init__(self, fault: Fault) -> None:
        base = {"numNodes": 1, "numProcPerNode": 2, "config": {}}
        super().__init__(make_run(**base | fault.case.spec))
        self.fault = fault

    @property
    def attempt(self) -> int:
        return self.run.status.attempt

    def tell(self) -> Plan:
        """The attempts that end so, up to the plan about the last one."""
        case = self.fault.case
        self.see()
        for time in range(case.times):
            if time:
                self.see(after=LATER)  # the next attempt starts
            if case.report is not None:
                self.see(*self.healthy(), report=self.report())
            plan = self.look()
            if case.after:
                plan = self.look(case.after)
        return plan

    def look(self, after: float = 0) -> Plan:
        """The operator sees the pods of the case; those it says nothing about run."""
        seen = [*self.fault.case.seen, *[Seen()] * self.run.status.nodes]
        found = [worker(seen[node], node, self.attempt) for node in range(self.run.status.nodes)]
        lost = frozenset(f"host{node}" for node, each in enumerate(seen) if each.lost)
        report = self.report() if self.fault.case.report is not None else None
        return self.see(*filter(None, found), after=after, report=report, lost=lost)

    def healthy(self, **fields: Any) -> list[Worker]:
        return [make_worker(node, self.attempt, **fields) for node in range(self.run.status.nodes)]

    def report(self) -> Any:
        fields = dict(self.fault.case.report or {})
        ranks = self.run.status.nodes * self.run.nproc
        joined = fields.pop("ranks_joined", ranks)
        return make_report(self.attempt, joined, **{"world_size": ranks} | fields)

    def fix(self) -> None:
        """What the user does: apply a changed spec, or ask for another attempt."""
        remedy = self.fault.case.remedy
        if remedy.spec is not None:
            wire = self.run.to_wire()
            wire["spec"] = {**wire["spec"], **remedy.spec}
            wire["metadata"]["generation"] += 1
            self.run = type(self.run).model_validate(wire)
        if remedy.retry:
            self.run.metadata.annotations[RETRY] = "now"

    def finish(self) -> Plan:
        """Every rank ends well."""
        done = make_report(self.attempt, step=40, total_steps=40).model_dump_json()
        return self.see(*self.healthy(phase="Succeeded", exit_code=0, termination_message=done))


@pytest.mark.parametrize("fault", SEEN, ids=str)
def test_the_root_cause_is_named_and_the_right_action_follows(fault: Fault) -> None:
    story = Told(fault)
    status = story.tell().status
    assert status.phase in PHASES[fault.row.then], status.message
    if fault.row.where == "condition":
        (condition,) = [c for c in status.conditions if c.type == fault.row.reason]
        assert (condition.status, says(condition.message, fault.line)) == ("True", True)
    elif fault.row.where == "status":
        assert status.reason == fault.row.reason, status.message
        assert says(status.message, fault.line), status.message
        assert says(status.message, fault.row.see), status.message
        assert "\n" not in status.message
    ended = [record for record in status.attempts if record.outcome == "Failed"]
    restarted = fault.row.then == "restart"
    assert (status.restarts, len(status.attempts)) == (
        len(ended) if restarted else fault.case.times - 1 if counts(fault) else 0,
        fault.case.times,
    )


def counts(fault: Fault) -> bool:
    """Whether the attempts before the last one counted against maxRestarts."""
    return fault.row.reason == "Signal"


@pytest.mark.parametrize("fault", SEEN, ids=str)
def test_the_remedy_lets_the_run_continue(fault: Fault) -> None:
    story = Told(fault)
    before = story.tell().status
    if fault.row.then == "stop":
        assert story.see(after=LATER).create == (), "it waits for its user"
    story.fix()
    if fault.row.then in ("stop", "restart", "restart, not counted"):
        plan = story.see(after=LATER)
        assert plan.status.attempt == before.attempt + 1
        assert len(plan.create) == plan.status.nodes
    elif fault.case.remedy.spec:
        assert story.look().status.reason == "SpecChanged"
        assert len(story.see().create) == before.nodes, "pods are made from the fixed spec"
    elif before.phase != "Succeeded":
        assert story.see(*story.healthy(), report=story.report()).status.phase != "Failed"
        assert story.attempt == before.attempt
    if before.phase == "Succeeded":
        assert story.see(*story.healthy(phase="Succeeded")).status.phase == "Succeeded"
    else:
        assert story.finish().status.phase == "Succeeded"
