"""Alerting rules. Each names the part of the docs that says what to do."""

from monitoring import records as r
from monitoring.rules import Alert, Record
from trainyard_api import metrics as m

_RUN = "{{ $labels.namespace }}/{{ $labels.run }}"
_APP = "{{ $labels.namespace }}/{{ $labels.app }}"
_PER_RUN = "on (namespace, run)"
_RUNNING = f'max by (namespace, run) ({m.RUN_PHASE}{{phase="Running"}})'
_HUNG = f'max by (namespace, run) ({m.RUN_FAILED_ATTEMPTS}{{reason="Hang"}})'
_TROUBLE, _OPERATE = "docs/operate/troubleshooting.md", "docs/operate/operations.md"

RUNS = (
    Alert(
        "TrainyardRunStalled",
        f"max by (namespace, run) (changes({m.STEP}[15m]))",
        f"== 0 and {_PER_RUN} {_RUNNING} == 1",
        "5m",
        "warning",
        f"Run {_RUN} makes no progress",
        f"Every rank of {_RUN} has joined, but no optimizer step was done for 20 minutes.",
        f"{_TROUBLE}#a-run-that-stalls",
    ),
    Alert(
        "TrainyardRankStuck",
        f"max by (namespace, run) ({m.STALLED_SECONDS})",
        "> 600",
        "1m",
        "warning",
        f"A rank of {_RUN} is stuck",
        f"A rank of {_RUN} has given no sign of progress for {{{{ $value | humanizeDuration }}}}.",
        f"{_TROUBLE}#a-run-that-stalls",
    ),
    Alert(
        "TrainyardRunHung",
        _HUNG,
        f"> 0 and {_PER_RUN} {r.RESTARTS} > 0",
        "0m",
        "warning",
        f"An attempt of {_RUN} hung",
        f"A rank of {_RUN} was stopped or held up the others; the attempt was ended and the next"
        " one goes on from the newest checkpoint. The run's status names the rank.",
        f"{_TROUBLE}#a-rank-that-hangs",
    ),
    Alert(
        "TrainyardCheckpointTooOld",
        f"{r.CHECKPOINT_AGE}",
        "> 3600",
        "5m",
        "warning",
        f"{_RUN} would lose more than an hour",
        f"The newest complete checkpoint of {_RUN} is"
        " {{ $value | humanizeDuration }} old: a fault now costs that much work.",
        f"{_TROUBLE}#a-checkpoint-that-is-too-old",
    ),
    Alert(
        "TrainyardRunRestarting",
        f"{r.RESTARTS}",
        ">= 3",
        "0m",
        "warning",
        f"{_RUN} starts again and again",
        f"{_RUN} has lost {{{{ $value | humanize }}}} attempts within an hour.",
        f"{_TROUBLE}#a-run-that-starts-again-and-again",
    ),
    Alert(
        "TrainyardRunFailed",
        f'max by (namespace, run) ({m.RUN_PHASE}{{phase="Failed"}})',
        "== 1",
        "0m",
        "info",
        f"Run {_RUN} has failed",
        f"{_RUN} has failed and is not tried again; its status names the root cause.",
        f"{_TROUBLE}#troubleshooting",
    ),
    Alert(
        "TrainyardRunWaiting",
        f"max by (namespace, run, queue) ({m.RUN_WAITING_SECONDS})",
        "> 1800",
        "0m",
        "warning",
        f"{_RUN} waits for its pods",
        f"{_RUN} has been Pending for {{{{ $value | humanizeDuration }}}}; its status says what is"
        " awaited.",
        f"{_TROUBLE}#a-run-that-waits",
    ),
    Alert(
        "TrainyardGoodputLow",
        f"avg_over_time({r.GOODPUT}[1h])",
        "< 0.5",
        "1h",
        "info",
        f"{_RUN} spends more time off training than on it",
        f"Of the last hour of {_RUN} only {{{{ $value | humanizePercentage }}}} went into optimizer"
        " steps that bring it further.",
        f"{_TROUBLE}#a-run-with-low-goodput",
    ),
)
STUDIES = (
    Alert(
        "TrainyardRunSlowerThanStudy",
        f"{r.OF_STUDY}",
        "< 0.8",
        "15m",
        "warning",
        f"{_RUN} is slower than its study",
        f"{_RUN} runs at {{{{ $value | humanizePercentage }}}} of what its study found, or"
        " projected, for as many processes.",
        f"{_TROUBLE}#a-run-that-is-slower-than-its-study",
    ),
)
FLEET = (
    Alert(
        "TrainyardNoLeader",
        f"(max({m.LEADER}) or vector(0))",
        "== 0",
        "3m",
        "critical",
        "No operator leads",
        "No replica of the operator holds the Lease, or none is scraped: runs go on, but faults are"
        " not healed and new runs don't start.",
        f"{_OPERATE}#no-operator-leads",
    ),
    Alert(
        "TrainyardNotReconciling",
        f"sum(rate({m.RECONCILES}[10m]))",
        f'== 0 and on () sum({m.RUNS}{{phase!~"{r.STOPPED}"}}) > 0',
        "10m",
        "critical",
        "The operator does not look after its runs",
        "There are active runs, but none was looked at for 20 minutes.",
        f"{_OPERATE}#the-operator-does-not-reconcile",
    ),
    Alert(
        "TrainyardReconcilesFail",
        f"sum({m.FAILING})",
        "> 0",
        "15m",
        "warning",
        "Runs can't be reconciled",
        "Looking after {{ $value }} runs has failed for 15 minutes; the operator's log says why.",
        f"{_OPERATE}#reconciles-fail",
    ),
)
SERVING = (
    Alert(
        "TrainyardServingErrors",
        f"{r.ERRORS}",
        "> 0.05",
        "5m",
        "critical",
        f"{_APP} answers with errors",
        f"{{{{ $value | humanizePercentage }}}} of the requests to {_APP} end with a status of 500"
        " or above.",
        f"{_OPERATE}#a-server-that-fails-or-is-slow",
    ),
    Alert(
        "TrainyardServingSlow",
        f"{r.LATENCY}",
        "> 30",
        "10m",
        "warning",
        f"{_APP} is slow",
        f"One in twenty requests to {_APP} takes longer than {{{{ $value | humanizeDuration }}}}.",
        f"{_OPERATE}#a-server-that-fails-or-is-slow",
    ),
    Alert(
        "TrainyardServingRefusesModels",
        f'max by (namespace, pod) (increase({m.MODEL_SWAPS}{{result="refused"}}[1h]))',
        "> 0",
        "0m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.pod }} refuses a model",
        "{{ $labels.namespace }}/{{ $labels.pod }} met a newer model that is damaged or doesn't"
        " answer as its trainer did, and goes on with the one it has.",
        f"{_OPERATE}#a-server-that-refuses-models",
    ),
    Alert(
        "TrainyardServingNoModel",
        f"max by (namespace, pod) ({m.SERVING_QUEUE})",
        f"unless on (namespace, pod) max by (namespace, pod) ({m.MODEL_INFO})",
        "10m",
        "critical",
        "{{ $labels.namespace }}/{{ $labels.pod }} has no model",
        "{{ $labels.namespace }}/{{ $labels.pod }} has run for ten minutes without a model that"
        " verifies, and answers 503.",
        f"{_OPERATE}#a-server-that-refuses-models",
    ),
)
ALERTS = (*RUNS, *STUDIES, *FLEET, *SERVING)
GROUPS: dict[str, tuple[Record | Alert, ...]] = {
    "trainyard-runs": (*r.RUNS, *RUNS),
    "trainyard-studies": (*r.STUDIES, *STUDIES),
    "trainyard-fleet": (*r.FLEET, *FLEET),
    "trainyard-serving": (*r.SERVING, *SERVING),
}
