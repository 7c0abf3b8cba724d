"""Recording rules: throughput, goodput, restarts, what studies led to expect, and serving.

Series of a run come from its trainer, whose scrape adds namespace and pod, and from the operator,
which names the namespace itself. Two operators may tell of the same run while one takes over from
the other: hence `max`.
"""

from monitoring.rules import Record
from trainyard_api import metrics as m
from trainyard_api.status import FINISHED

# Active: it has begun, isn't suspended, and isn't finished.
STOPPED = "|".join(("Suspended", *FINISHED))
APP = 'label_replace({}, "app", "$1", "pod", "(.+)-[0-9a-z]+-[0-9a-z]{{5}}")'


def _of_run(expr: str) -> str:
    return f"sum by (namespace, run) ({expr})"


def _by_app(expr: str, *more: str) -> str:
    """Summed over the pods of a release of charts/serving: Deployment, ReplicaSet, five letters."""
    by = ", ".join(("namespace", "app", *more))
    return f"sum by ({by}) ({APP.format(expr)})"


def _at_size(result: m.Metric) -> str:
    """What a run's study says of the number of processes that the run has."""
    found = f"max by (namespace, study, processes) ({result})"
    ranks = f"max by (namespace, run) ({m.WORLD_SIZE})"
    size = f'count_values by (namespace, run) ("processes", {ranks})'
    study = f"max by (namespace, run, study) ({m.RUN_STUDY})"
    sized = f"{size} * on (namespace, run) group_left (study) {study}"
    return (
        f"max by (namespace, run) (({sized})"
        f" * on (namespace, study, processes) group_left () {found})"
    )


TOKENS_RATE = Record("namespace_run:trainyard_tokens:rate5m", _of_run(f"rate({m.TOKENS}[5m])"))
SAMPLES_RATE = Record("namespace_run:trainyard_samples:rate5m", _of_run(f"rate({m.SAMPLES}[5m])"))
# Of a run that waits or starts there are no productive seconds at all: that counts as none.
_ACTIVE = f"max by (namespace, run) (rate({m.RUN_ACTIVE_SECONDS}[5m]))"
_PRODUCTIVE = f"({_of_run(f'rate({m.PRODUCTIVE_SECONDS}[5m])')} or 0 * {_ACTIVE})"
GOODPUT = Record(
    "namespace_run:trainyard_goodput:ratio_rate5m",
    f"clamp_max({_PRODUCTIVE} / on (namespace, run) ({_ACTIVE} > 0), 1)",
)
RESTARTS = Record(
    "namespace_run:trainyard_restarts:increase1h",
    f"max by (namespace, run) (increase({m.RUN_RESTARTS}[1h]))",
)
# Before the first checkpoint of a run: the time since its process began.
_BEGAN = (
    f"max by (namespace, run) ({m.PROCESS_START_TIME}"
    f" * on (job, instance) group_left (run) {m.RUN_INFO})"
)
CHECKPOINT_AGE = Record(
    "namespace_run:trainyard_checkpoint_age:seconds",
    f"time() - (max by (namespace, run) ({m.CHECKPOINT_TIME}) or {_BEGAN})",
)

EXPECTED_TOKENS = Record(
    "namespace_run:trainyard_study_tokens:expected", _at_size(m.STUDY_TOKENS_PER_SECOND)
)
EXPECTED_SAMPLES = Record(
    "namespace_run:trainyard_study_samples:expected", _at_size(m.STUDY_SAMPLES_PER_SECOND)
)
OF_STUDY = Record(
    "namespace_run:trainyard_throughput:ratio_study",
    f"{TOKENS_RATE} / {EXPECTED_TOKENS} or {SAMPLES_RATE} / {EXPECTED_SAMPLES}",
)
EFFICIENCY = Record(
    "namespace_run:trainyard_efficiency:ratio_rate5m",
    f"{OF_STUDY} * on (namespace, run) {_at_size(m.STUDY_EFFICIENCY)}",
)

GPUS = Record(
    "namespace_phase:trainyard_gpus:sum",
    f"sum by (namespace, phase) (max by (namespace, run) ({m.RUN_GPUS})"
    f" * on (namespace, run) group_left (phase)"
    f" max by (namespace, run, phase) ({m.RUN_PHASE}))",
)
FLEET_GOODPUT = Record(
    "namespace:trainyard_goodput:ratio_rate5m",
    f"clamp_max(sum by (namespace) {_PRODUCTIVE}"
    f" / on (namespace) (sum by (namespace) ({_ACTIVE}) > 0), 1)",
)

_ALL = f"rate({m.REQUESTS}[5m])"
_FAILED = f'rate({m.REQUESTS}{{code=~"5.."}}[5m])'
REQUESTS_RATE = Record("namespace_app:trainyard_serving_requests:rate5m", _by_app(_ALL))
ERRORS = Record(
    "namespace_app:trainyard_serving_errors:ratio_rate5m",
    f"({_by_app(_FAILED)} or 0 * {_by_app(_ALL)}) / ({_by_app(_ALL)} > 0)",
)
LATENCY = Record(
    "namespace_app:trainyard_serving_request_seconds:p95_5m",
    f"histogram_quantile(0.95, {_by_app(f'rate({m.REQUEST_SECONDS}_bucket[5m])', 'le')})",
)
QUEUE = Record("namespace_app:trainyard_serving_queue_depth:sum", _by_app(str(m.SERVING_QUEUE)))

RUNS = (TOKENS_RATE, SAMPLES_RATE, GOODPUT, RESTARTS, CHECKPOINT_AGE)
STUDIES = (EXPECTED_TOKENS, EXPECTED_SAMPLES, OF_STUDY, EFFICIENCY)
FLEET = (GPUS, FLEET_GOODPUT)
SERVING = (REQUESTS_RATE, ERRORS, LATENCY, QUEUE)
RECORDS = (*RUNS, *STUDIES, *FLEET, *SERVING)
