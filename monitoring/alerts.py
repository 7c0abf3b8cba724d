"""Alerting rules. Each names the section of the docs that says what to do."""

from monitoring import rules as r
from monitoring.rules import Alert, Record
from trainyard_api import metrics as m

_RUN = "{{ $labels.namespace }}/{{ $labels.run }}"
_APP = "{{ $labels.namespace }}/{{ $labels.app }}"
_ROUTE = f"{_APP}{{{{ $labels.route }}}}"
_POD = "{{ $labels.namespace }}/{{ $labels.pod }}"
_DURATION = "{{ $value | humanizeDuration }}"
_PERCENTAGE = "{{ $value | humanizePercentage }}"
_SAME_RUN = "on (namespace, run)"
_RUNNING = f'max by (namespace, run) ({m.RUN_PHASE}{{phase="Running"}})'
_TROUBLE, _OPERATE = "docs/operate/troubleshooting.md", "docs/operate/operations.md"

RUNS = (
    Alert(
        name="TrainyardRunStalled",
        value=f"max by (namespace, run) (changes({m.STEP}[15m]))",
        condition=f"== 0 and {_SAME_RUN} {_RUNNING} == 1",
        duration="5m",
        severity="warning",
        summary=f"Run {_RUN} makes no progress",
        description=f"All ranks of {_RUN} have joined, but no optimizer step has completed for"
        " 20 minutes.",
        runbook=f"{_TROUBLE}#a-run-that-stalls",
    ),
    Alert(
        name="TrainyardRankStuck",
        value=f"max by (namespace, run) ({m.STALLED_SECONDS})",
        condition="> 600",
        duration="1m",
        severity="warning",
        summary=f"A rank of {_RUN} is stuck",
        description=f"A rank of {_RUN} has made no progress for {_DURATION}.",
        runbook=f"{_TROUBLE}#a-run-that-stalls",
    ),
    Alert(
        name="TrainyardRunHung",
        value=f'max by (namespace, run) ({m.RUN_FAILED_ATTEMPTS}{{reason="Hang"}})',
        condition=f"> 0 and {_SAME_RUN} {r.RESTARTS} > 0",
        duration="0m",
        severity="warning",
        summary=f"An attempt of {_RUN} hung",
        description=f"A rank of {_RUN} stopped or blocked the others. The attempt was ended, and"
        " the next one resumes from the newest checkpoint. The run's status names the rank.",
        runbook=f"{_TROUBLE}#a-rank-that-hangs",
    ),
    Alert(
        name="TrainyardCheckpointTooOld",
        value=f"{r.CHECKPOINT_AGE}",
        condition="> 3600",
        duration="5m",
        severity="warning",
        summary=f"{_RUN} has no checkpoint from the last hour",
        description=f"The newest complete checkpoint of {_RUN} is {_DURATION} old. A failure now"
        " would lose that much work.",
        runbook=f"{_TROUBLE}#a-checkpoint-that-is-too-old",
    ),
    Alert(
        name="TrainyardRunRestarting",
        value=f"{r.RESTARTS}",
        condition=">= 3",
        duration="0m",
        severity="warning",
        summary=f"{_RUN} restarts repeatedly",
        description=f"{_RUN} was restarted {{{{ $value | humanize }}}} times in the last hour.",
        runbook=f"{_TROUBLE}#a-run-that-starts-again-and-again",
    ),
    Alert(
        name="TrainyardRunFailed",
        value=f'max by (namespace, run) ({m.RUN_PHASE}{{phase="Failed"}})',
        condition="== 1",
        duration="0m",
        severity="info",
        summary=f"Run {_RUN} failed",
        description=f"{_RUN} failed and will not be retried. Its status gives the root cause.",
        runbook=f"{_TROUBLE}#troubleshooting",
    ),
    Alert(
        name="TrainyardRunWaiting",
        value=f"max by (namespace, run, queue) ({m.RUN_WAITING_SECONDS})",
        condition="> 1800",
        duration="0m",
        severity="warning",
        summary=f"{_RUN} is waiting for its pods",
        description=f"{_RUN} has been Pending for {_DURATION}. Its status says what it is waiting"
        " for.",
        runbook=f"{_TROUBLE}#a-run-that-waits",
    ),
    Alert(
        name="TrainyardGoodputLow",
        value=f"avg_over_time({r.GOODPUT}[1h])",
        condition="< 0.5",
        duration="1h",
        severity="info",
        summary=f"{_RUN} spends less than half its time training",
        description=f"Over the last hour, only {_PERCENTAGE} of the time of {_RUN} went into"
        " optimizer steps that advance the run.",
        runbook=f"{_TROUBLE}#a-run-with-low-goodput",
    ),
)
STUDIES = (
    Alert(
        name="TrainyardRunSlowerThanStudy",
        value=f"{r.STUDY_RATIO}",
        condition="< 0.8",
        duration="15m",
        severity="warning",
        summary=f"{_RUN} is slower than its study",
        description=f"The throughput of {_RUN} is {_PERCENTAGE} of what its study measured or"
        " projected for the same number of processes.",
        runbook=f"{_TROUBLE}#a-run-that-is-slower-than-its-study",
    ),
)
FLEET = (
    Alert(
        name="TrainyardNoLeader",
        value=f"(max({m.LEADER}) or vector(0))",
        condition="== 0",
        duration="3m",
        severity="critical",
        summary="The operator has no leader",
        description="No replica of the operator holds the Lease, or none is scraped. Existing runs"
        " continue, but failed attempts are not retried and new runs do not start.",
        runbook=f"{_OPERATE}#no-operator-leads",
    ),
    Alert(
        name="TrainyardNotReconciling",
        value=f"sum(rate({m.RECONCILES}[10m]))",
        condition=f'== 0 and on () sum({m.RUNS}{{phase!~"{r.INACTIVE_PHASES}"}}) > 0',
        duration="10m",
        severity="critical",
        summary="The operator does not reconcile its runs",
        description="There are active runs, but none has been reconciled for 20 minutes.",
        runbook=f"{_OPERATE}#the-operator-does-not-reconcile",
    ),
    Alert(
        name="TrainyardReconcilesFail",
        value=f"sum({m.FAILING})",
        condition="> 0",
        duration="15m",
        severity="warning",
        summary="Reconciling fails",
        description="Reconciling {{ $value }} runs or studies has failed for 15 minutes. The"
        " operator's log says why.",
        runbook=f"{_OPERATE}#reconciles-fail",
    ),
)
SERVING = (
    Alert(
        name="TrainyardServingErrors",
        value=f"{r.ERRORS}",
        condition="> 0.05",
        duration="5m",
        severity="critical",
        summary=f"{_ROUTE} returns errors",
        description=f"{_PERCENTAGE} of the valid requests to {_ROUTE} fail with a status of 500 or"
        " above.",
        runbook=f"{_OPERATE}#a-server-that-fails-or-is-slow",
    ),
    Alert(
        name="TrainyardServingSlow",
        value=f"{r.LATENCY}",
        condition="> 30",
        duration="10m",
        severity="warning",
        summary=f"{_ROUTE} is slow",
        description=f"5% of the answers of {_ROUTE} take longer than {_DURATION}.",
        runbook=f"{_OPERATE}#a-server-that-fails-or-is-slow",
    ),
    Alert(
        name="TrainyardServingOverloaded",
        value=f"{r.REFUSALS}",
        condition="> 0.1",
        duration="5m",
        severity="critical",
        summary=f"{_ROUTE} refuses requests",
        description=f"{_PERCENTAGE} of the requests to {_ROUTE} are refused with status 429,"
        " because the queue is full.",
        runbook=f"{_OPERATE}#a-server-that-is-overloaded",
    ),
    Alert(
        name="TrainyardServingRefusesModels",
        value=f'max by (namespace, pod) (increase({m.MODEL_SWAPS}{{result="refused"}}[1h]))',
        condition="> 0",
        duration="0m",
        severity="warning",
        summary=f"{_POD} refused a model",
        description=f"{_POD} refused a newer model, which is damaged, does not answer as it did"
        " when it was trained, or misses a bound of --require. It continues to serve its current"
        " model, if it has one.",
        runbook=f"{_OPERATE}#a-server-that-refuses-models",
    ),
    Alert(
        name="TrainyardServingNoModel",
        value=f"max by (namespace, pod) ({m.SERVING_READY})",
        condition="== 0",
        duration="10m",
        severity="critical",
        summary=f"{_POD} has no model",
        description=f"{_POD} has had no model for ten minutes and answers requests with 503.",
        runbook=f"{_OPERATE}#a-server-without-a-model",
    ),
)
ALERTS = (*RUNS, *STUDIES, *FLEET, *SERVING)
GROUPS: dict[str, tuple[Record | Alert, ...]] = {
    "trainyard-runs": (*r.RUN_RECORDS, *RUNS),
    "trainyard-studies": (*r.STUDY_RECORDS, *STUDIES),
    "trainyard-fleet": (*r.FLEET_RECORDS, *FLEET),
    "trainyard-serving": (*r.SERVING_RECORDS, *SERVING),
}
