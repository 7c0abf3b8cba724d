"""All runs of a cluster, and the operator that manages them."""

from monitoring import rules as r
from monitoring.grafana import (
    MERGE,
    Row,
    barchart,
    build,
    columns,
    properties,
    stat,
    table,
    thresholds,
    timeseries,
    variable,
)
from trainyard_api import metrics as m
from trainyard_api.status import FINISHED

_NAMESPACE = '{namespace=~"$namespace"}'
_WINDOW = "[$__rate_interval]"
_FINISHED_PHASES = "|".join(FINISHED)
_PHASES = f"max by (namespace, run, phase) ({m.RUN_PHASE}{_NAMESPACE})"
_GPUS_IN_USE = f'{r.GPUS}{{namespace=~"$namespace",phase=~"Starting|Running"}}'
_GPU_SUM = f"sum_over_time(sum by (namespace) ({_GPUS_IN_USE})[$__range:$__interval])"


def _count(phases: str) -> str:
    return f'sum({m.RUNS}{{phase=~"{phases}"}})'


def _reconcile_quantile(share: float) -> str:
    buckets = f"sum by (le) (rate({m.RECONCILE_SECONDS}_bucket{_WINDOW}))"
    return f"histogram_quantile({share}, {buckets})"


_NOW = Row(
    "Now",
    (
        stat("Running", "Runs whose ranks have all joined.", _count("Running")),
        stat(
            "Waiting",
            "Runs that are waiting for pods, or whose ranks are joining.",
            _count("Pending|Starting"),
        ),
        stat(
            "Longest wait",
            "The longest time that a run has been waiting for its pods.",
            f"max({m.RUN_WAITING_SECONDS}{_NAMESPACE}) or vector(0)",
            "s",
        ).thresholds(thresholds("green", (600, "yellow"), (1800, "red"))),
        stat(
            "GPUs in use", "GPUs of starting and running runs.", f"sum({_GPUS_IN_USE}) or vector(0)"
        ),
        stat(
            "Goodput",
            "Of all active runs: time in optimizer steps that advance the run / wall time.",
            f"avg({r.FLEET_GOODPUT}{_NAMESPACE})",
            "percentunit",
        )
        .decimals(0)
        .thresholds(thresholds("red", (0.5, "yellow"), (0.8, "green"))),
        stat(
            "Leaders",
            "Replicas of the operator that hold the Lease; 1 is normal.",
            f"sum({m.LEADER})",
        ).thresholds(thresholds("red", (1, "green"), (2, "red"))),
    ),
)
_RUNS = Row(
    "Runs",
    (
        timeseries(
            "Runs by phase",
            "Finished runs are counted for 15 minutes.",
            {"{{phase}}": f"count by (phase) ({_PHASES})"},
            stacked=True,
        ).decimals(0),
        timeseries(
            "Waiting runs by queue",
            "Runs that are waiting for their pods, by the queue in their spec.",
            {"queue {{queue}}": f"count by (queue) ({m.RUN_WAITING_SECONDS}{_NAMESPACE})"},
            stacked=True,
        ).decimals(0),
        timeseries(
            "Longest wait by queue",
            "The longest time that a run of each queue has been waiting.",
            {"queue {{queue}}": f"max by (queue) ({m.RUN_WAITING_SECONDS}{_NAMESPACE})"},
            "s",
        ),
        table(
            "All runs",
            "Unfinished runs, and runs that finished in the last 15 minutes.",
            _PHASES,
            *(
                f"max by (namespace, run) ({metric}{_NAMESPACE})"
                for metric in (m.RUN_GPUS, m.RUN_ACTIVE_SECONDS, m.RUN_RESTARTS, r.GOODPUT)
            ),
        )
        .with_transformation(MERGE)
        .with_transformation(
            columns(
                {
                    "namespace": "Namespace",
                    "run": "Run",
                    "phase": "Phase",
                    "Value #B": "GPUs",
                    "Value #C": "Active time",
                    "Value #D": "Restarts",
                    "Value #E": "Goodput",
                },
                hidden=["Time", "Value #A"],
            )
        )
        .override_by_name("Active time", properties(unit="s"))
        .override_by_name("Goodput", properties(unit="percentunit", decimals=0)),
    ),
)
_USE = Row(
    "GPUs and goodput",
    (
        timeseries(
            "GPUs by phase of their run",
            "GPUs that unfinished runs request. Pending runs do not hold theirs yet.",
            {
                "{{phase}}": f"sum by (phase) ({r.GPUS}"
                f'{{namespace=~"$namespace",phase!~"{_FINISHED_PHASES}"}})'
            },
            stacked=True,
        ).decimals(0),
        barchart(
            "GPU hours",
            "GPU hours of starting and running runs in the selected time range, by namespace.",
            "Namespace",
            f"{_GPU_SUM} * $__interval_ms / 3600000",
        )
        .decimals(1)
        .with_transformation(columns({"namespace": "Namespace", "Value": "GPU hours"}, ["Time"])),
        timeseries(
            "Goodput by namespace",
            "Of the active runs: time in optimizer steps that advance the run / wall time.",
            {"{{namespace}}": f"max by (namespace) ({r.FLEET_GOODPUT}{_NAMESPACE})"},
            "percentunit",
        ).max(1),
        timeseries(
            "Lowest goodput",
            "The ten runs with the lowest goodput.",
            {
                "{{namespace}}/{{run}}": "bottomk(10, max by (namespace, run)"
                f" ({r.GOODPUT}{_NAMESPACE}))"
            },
            "percentunit",
        )
        .max(1)
        .span(12),
        timeseries(
            "Lowest throughput against the study",
            "The ten runs with the lowest throughput relative to their study.",
            {"{{namespace}}/{{run}}": f"bottomk(10, {r.STUDY_RATIO}{_NAMESPACE})"},
            "percentunit",
        ).span(12),
    ),
)
_FAULTS = Row(
    "Faults",
    (
        timeseries(
            "Failed attempts by reason",
            "Per hour, in all namespaces.",
            {"{{reason}}": f"sum by (reason) (increase({m.RESTARTS}[1h]))"},
            stacked=True,
        ).span(12),
        timeseries(
            "Restarts by run",
            "The ten runs with the most restarts in the last hour.",
            {"{{namespace}}/{{run}}": f"topk(10, {r.RESTARTS}{_NAMESPACE})"},
        ).span(12),
    ),
)
_OPERATOR = Row(
    "Operator",
    (
        timeseries(
            "Reconciles by result",
            "Per second.",
            {"{{result}}": f"sum by (result) (rate({m.RECONCILES}{_WINDOW}))"},
            "ops",
            stacked=True,
        ),
        timeseries(
            "Reconcile duration",
            "Median and 99th percentile.",
            {"p50": _reconcile_quantile(0.5), "p99": _reconcile_quantile(0.99)},
            "s",
        ),
        timeseries(
            "Waiting and failing",
            "Runs and studies that are waiting to be reconciled, and those whose last reconcile"
            " failed.",
            {"waiting": f"sum({m.QUEUE_DEPTH})", "failing": f"sum({m.FAILING})"},
        ).decimals(0),
        timeseries(
            "Memory",
            "Resident memory of each replica.",
            {"{{pod}}": f"{m.PROCESS_MEMORY_BYTES} and on (job, instance) {m.LEADER}"},
            "bytes",
        ).span(12),
        timeseries(
            "Studies by phase",
            "Scaling studies in all namespaces.",
            {"{{phase}}": f"sum by (phase) ({m.STUDIES})"},
            stacked=True,
        )
        .decimals(0)
        .span(12),
    ),
    collapsed=True,
)

FLEET = build(
    "fleet",
    "Trainyard / Fleet",
    "Runs by phase, queues, goodput and GPU hours of a cluster, and its operator.",
    (variable("namespace", "Namespace", m.RUN_PHASE.name, multi=True),),
    (_NOW, _RUNS, _USE, _FAULTS, _OPERATOR),
    since="now-6h",
)
