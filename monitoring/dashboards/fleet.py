"""All runs of a cluster, and the operator that looks after them."""

from monitoring import records as r
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable, column, organised, stat
from trainyard_api import metrics as m
from trainyard_api.status import FINISHED

_OF = '{namespace=~"$namespace"}'
_WINDOW = "[$__rate_interval]"
_ENDED = "|".join(FINISHED)
_PHASES = f"max by (namespace, run, phase) ({m.RUN_PHASE}{_OF})"
_AT_WORK = f'{r.GPUS}{{namespace=~"$namespace",phase=~"Starting|Running"}}'
_SUMMED = f"sum_over_time(sum by (namespace) ({_AT_WORK})[$__range:$__interval])"
_HOURS = f"{_SUMMED} * $__interval_ms / 3600000"


def _in_phase(phases: str) -> str:
    return f'sum({m.RUNS}{{phase=~"{phases}"}})'


_NOW = Row(
    "Now",
    (
        stat("Running", "Runs of which every rank has joined.", _in_phase("Running")),
        stat(
            "Waiting",
            "Runs that wait for pods, or whose ranks are joining.",
            _in_phase("Pending|Starting"),
        ),
        stat(
            "Longest wait",
            "Time that the run at the end of the queue has waited for its pods.",
            f"max({m.RUN_WAITING_SECONDS}{_OF}) or vector(0)",
            "s",
            steps=((None, "green"), (600, "yellow"), (1800, "red")),
        ),
        stat(
            "GPUs at work",
            "GPUs of runs that start or run.",
            f"sum({_AT_WORK}) or vector(0)",
        ),
        stat(
            "Goodput",
            "Of all active runs: time in steps that bring them further / wall time.",
            f"avg({r.FLEET_GOODPUT}{_OF})",
            "percentunit",
            decimals=0,
            steps=((None, "red"), (0.5, "yellow"), (0.8, "green")),
        ),
        stat(
            "Leader",
            "1: one replica of the operator looks after the runs.",
            f"sum({m.LEADER})",
            steps=((None, "red"), (1, "green"), (2, "red")),
        ),
    ),
)
_RUNS = Row(
    "Runs",
    (
        Panel(
            "Runs by phase",
            "Without those that ended more than 15 minutes ago.",
            (Query(f"count by (phase) ({_PHASES})", "{{phase}}"),),
            "none",
            stacked=True,
            decimals=0,
        ),
        Panel(
            "Waiting runs by queue",
            "Runs that wait for their pods, by the queue they name.",
            (Query(f"count by (queue) ({m.RUN_WAITING_SECONDS}{_OF})", "queue {{queue}}"),),
            stacked=True,
            decimals=0,
        ),
        Panel(
            "Longest wait by queue",
            "Time that the first in each queue has waited.",
            (Query(f"max by (queue) ({m.RUN_WAITING_SECONDS}{_OF})", "queue {{queue}}"),),
            "s",
        ),
        Panel(
            "Every run",
            "Unfinished runs and those that ended lately.",
            (
                Query(_PHASES, instant=True),
                Query(f"max by (namespace, run) ({m.RUN_GPUS}{_OF})", instant=True),
                Query(f"max by (namespace, run) ({m.RUN_ACTIVE_SECONDS}{_OF})", instant=True),
                Query(f"max by (namespace, run) ({m.RUN_RESTARTS}{_OF})", instant=True),
                Query(f"max by (namespace, run) ({r.GOODPUT}{_OF})", instant=True),
            ),
            kind="table",
            width=24,
            least=None,
            transformations=(
                {"id": "merge", "options": {}},
                organised(
                    {
                        "namespace": "Namespace",
                        "run": "Run",
                        "phase": "Phase",
                        "Value #B": "GPUs",
                        "Value #C": "Active",
                        "Value #D": "Restarts",
                        "Value #E": "Goodput",
                    },
                    hidden=("Time", "Value #A"),
                ),
            ),
            overrides=(
                column("Active", unit="s"),
                column("Goodput", unit="percentunit", decimals=0),
            ),
        ),
    ),
)
_USE = Row(
    "GPUs and goodput",
    (
        Panel(
            "GPUs by phase of their run",
            "GPUs that unfinished runs ask for. Pending ones are not held.",
            (
                Query(
                    f'sum by (phase) ({r.GPUS}{{namespace=~"$namespace",phase!~"{_ENDED}"}})',
                    "{{phase}}",
                ),
            ),
            stacked=True,
            decimals=0,
        ),
        Panel(
            "GPU hours",
            "Of runs that started or ran within the time shown, by namespace.",
            (Query(_HOURS, "{{namespace}}", instant=True),),
            "none",
            kind="barchart",
            decimals=1,
            transformations=(
                organised({"namespace": "Namespace", "Value": "GPU hours"}, ("Time",)),
            ),
            options={"xField": "Namespace"},
        ),
        Panel(
            "Goodput by namespace",
            "Time in steps that bring runs further / wall time of the active runs.",
            (Query(f"max by (namespace) ({r.FLEET_GOODPUT}{_OF})", "{{namespace}}"),),
            "percentunit",
            most=1,
        ),
        Panel(
            "Lowest goodput",
            "The ten runs with the lowest goodput.",
            (
                Query(
                    f"bottomk(10, max by (namespace, run) ({r.GOODPUT}{_OF}))",
                    "{{namespace}}/{{run}}",
                ),
            ),
            "percentunit",
            most=1,
            width=12,
        ),
        Panel(
            "Slowest beside their study",
            "The ten runs that are slowest beside what their studies found.",
            (Query(f"bottomk(10, {r.OF_STUDY}{_OF})", "{{namespace}}/{{run}}"),),
            "percentunit",
            width=12,
        ),
    ),
)
_FAULTS = Row(
    "Faults",
    (
        Panel(
            "Failed attempts by reason",
            "Per hour, of all namespaces.",
            (Query(f"sum by (reason) (increase({m.RESTARTS}[1h]))", "{{reason}}"),),
            stacked=True,
            width=12,
        ),
        Panel(
            "Restarts by run",
            "The ten runs with most restarts within an hour.",
            (Query(f"topk(10, {r.RESTARTS}{_OF})", "{{namespace}}/{{run}}"),),
            width=12,
        ),
    ),
)
_OPERATOR = Row(
    "Operator",
    (
        Panel(
            "Reconciles by result",
            "Per second.",
            (Query(f"sum by (result) (rate({m.RECONCILES}{_WINDOW}))", "{{result}}"),),
            "ops",
            stacked=True,
        ),
        Panel(
            "Time of a reconcile",
            "Median and 99th centile.",
            tuple(
                Query(
                    f"histogram_quantile({share},"
                    f" sum by (le) (rate({m.RECONCILE_SECONDS}_bucket{_WINDOW})))",
                    name,
                )
                for share, name in ((0.5, "p50"), (0.99, "p99"))
            ),
            "s",
        ),
        Panel(
            "Waiting and failing",
            "Runs that wait to be looked at, and runs for which that has failed.",
            (
                Query(f"sum({m.QUEUE_DEPTH})", "waiting"),
                Query(f"sum({m.FAILING})", "failing"),
            ),
            decimals=0,
        ),
        Panel(
            "Memory",
            "Resident memory of each replica.",
            (Query(f"{m.PROCESS_MEMORY_BYTES} and on (job, instance) {m.LEADER}", "{{pod}}"),),
            "bytes",
            width=12,
        ),
        Panel(
            "Studies by phase",
            "Scaling studies there are.",
            (Query(f"sum by (phase) ({m.STUDIES})", "{{phase}}"),),
            stacked=True,
            decimals=0,
            width=12,
        ),
    ),
    collapsed=True,
)

FLEET = Dashboard(
    "fleet",
    "Trainyard / Fleet",
    "Runs by phase, queues, goodput and GPU hours of a cluster, and its operator.",
    (Variable("namespace", "namespace", m.RUN_PHASE.name, "Namespace", several=True),),
    (_NOW, _RUNS, _USE, _FAULTS, _OPERATOR),
    since="now-6h",
)
