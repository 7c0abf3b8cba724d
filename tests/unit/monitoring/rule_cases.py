"""Cases for the rules: input series with a sample per minute, and the samples expected."""

from collections.abc import Mapping
from dataclasses import dataclass

from monitoring import rules as r
from trainyard_api import metrics as m

RUN_LABELS = {"namespace": "ns", "run": "r"}
STUDY_LABELS = {"namespace": "ns", "study": "s", "configuration": "c", "source": "measured"}
POD_LABELS = {"namespace": "ns", "pod": "bard-serving-6d4cf56db6-x7k2p"}  # of a Deployment
APP_LABELS = {"namespace": "ns", "app": "bard-serving"}
ROUTE_LABELS = APP_LABELS | {"route": "/predict"}
TO_END = "x200"  # longer than any case
Series = tuple[str, str]  # name with labels, values


def series(metric: object, labels: Mapping[str, str], values: str) -> Series:
    """A series in promtool's notation; `0+60x10` rises from 0 to 600 in ten minutes."""
    return selector(metric, labels), values


def selector(metric: object, labels: Mapping[str, str]) -> str:
    matchers = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{metric}{{{matchers}}}"


@dataclass(frozen=True)
class Case:
    """The samples that a rule yields from some series at the time `at`; 1 for a firing alert."""

    rule: str
    description: str
    series: tuple[Series, ...]
    samples: tuple[tuple[Mapping[str, str], float], ...]
    at: str = "100m"


def _record(rule: object, description: str, *inputs: Series, value: float | None = None) -> Case:
    """A recording rule with a value per run: that of run r, or None for no sample."""
    samples = () if value is None else ((RUN_LABELS, value),)
    return Case(str(rule), description, inputs, samples)


def _fires(rule: str, description: str, *inputs: Series, labels: Mapping[str, str]) -> Case:
    return Case(rule, description, inputs, ((labels, 1),))


def _silent(rule: str, description: str, *inputs: Series, at: str = "100m") -> Case:
    return Case(rule, description, inputs, (), at)


def _run(metric: object, values: str, **labels: str) -> Series:
    return series(metric, RUN_LABELS | labels, values)


def _study(metric: object, processes: int, value: float) -> Series:
    return series(metric, STUDY_LABELS | {"processes": str(processes)}, f"{value}{TO_END}")


ROUTE_OF_POD = POD_LABELS | {"route": "/predict"}


def _requests(code: str, per_minute: int, route: str = "/predict") -> Series:
    labels = POD_LABELS | {"route": route, "code": code}
    return series(m.REQUESTS, labels, f"0+{per_minute}{TO_END}")


def _latency(fast: int, slow: int, code: str = "200") -> tuple[Series, ...]:
    """Requests per minute that take up to 10 s (`fast`), and 10 to 60 s (`slow`)."""
    counts = {"10": fast, "60": fast + slow, "+Inf": fast + slow}
    labels = POD_LABELS | {"route": "/predict", "code": code}
    return tuple(
        series(f"{m.REQUEST_SECONDS}_bucket", labels | {"le": le}, f"0+{count}{TO_END}")
        for le, count in counts.items()
    )


_TWO_RANKS = (
    _run(m.WORLD_SIZE, f"2{TO_END}"),
    _run(m.RUN_STUDY, f"1{TO_END}", study="s"),
)
_TOKENS = (_study(m.STUDY_TOKENS_PER_SECOND, 2, 20), _study(m.STUDY_TOKENS_PER_SECOND, 4, 30))
_SAMPLES = (_study(m.STUDY_SAMPLES_PER_SECOND, 2, 4), _study(m.STUDY_SAMPLES_PER_SECOND, 4, 6))
_TEN_TOKENS = _run(m.TOKENS, f"0+600{TO_END}")
_ONE_SAMPLE = _run(m.SAMPLES, f"0+60{TO_END}")
_ACTIVE = _run(m.RUN_ACTIVE_SECONDS, f"0+60{TO_END}")

RECORD_CASES = (
    _record(r.TOKENS_RATE, "tokens per second", _TEN_TOKENS, value=10),
    _record(
        r.TOKENS_RATE,
        "a new attempt has another pod, whose counter starts at 0",
        _run(m.TOKENS, "0+600x50", pod="r-1-0"),
        _run(m.TOKENS, "_x60 0+600x50", pod="r-2-0"),
        value=10,
    ),
    _record(r.SAMPLES_RATE, "samples per second", _ONE_SAMPLE, value=1),
    _record(
        r.GOODPUT,
        "half of the time in productive steps",
        _run(m.PRODUCTIVE_SECONDS, f"0+30{TO_END}"),
        _ACTIVE,
        value=0.5,
    ),
    _record(r.GOODPUT, "a waiting run has a goodput of 0", _ACTIVE, value=0),
    _record(
        r.GOODPUT,
        "capped at 1 when clocks differ",
        _run(m.PRODUCTIVE_SECONDS, f"0+61{TO_END}"),
        _ACTIVE,
        value=1,
    ),
    _record(
        r.GOODPUT,
        "no goodput for a suspended run",
        _run(m.PRODUCTIVE_SECONDS, f"0{TO_END}"),
        _run(m.RUN_ACTIVE_SECONDS, f"600{TO_END}"),
    ),
    _record(
        r.RESTARTS,
        "one restart, exported by two operators",
        *(_run(m.RUN_RESTARTS, "0x60 1x100", pod=pod) for pod in ("a", "b")),
        value=1,
    ),
    _record(
        r.CHECKPOINT_AGE,
        "checkpoint saved at 5400 s",
        _run(m.CHECKPOINT_TIME, f"5400{TO_END}"),
        value=600,
    ),
    _record(
        r.CHECKPOINT_AGE,
        "no checkpoint yet: since the process started",
        series(
            m.PROCESS_START_TIME,
            {"namespace": "ns", "job": "j", "instance": "i"},
            f"5000{TO_END}",
        ),
        _run(m.RUN_INFO, f"1{TO_END}", job="j", instance="i", recipe="gpt"),
        value=1000,
    ),
    _record(r.EXPECTED_TOKENS, "throughput of two processes", *_TWO_RANKS, *_TOKENS, value=20),
    _record(r.EXPECTED_TOKENS, "a size without a result in the study", *_TWO_RANKS, _TOKENS[1]),
    _record(r.EXPECTED_SAMPLES, "throughput of two processes", *_TWO_RANKS, *_SAMPLES, value=4),
    _record(
        r.STUDY_RATIO,
        "by tokens",
        *_TWO_RANKS,
        *_TOKENS,
        *_SAMPLES,
        _TEN_TOKENS,
        _ONE_SAMPLE,
        value=0.5,
    ),
    _record(
        r.STUDY_RATIO,
        "by samples if there are no tokens",
        *_TWO_RANKS,
        *_SAMPLES,
        _ONE_SAMPLE,
        value=0.25,
    ),
    _record(
        r.STUDY_RATIO,
        "a run without a study",
        _run(m.WORLD_SIZE, f"2{TO_END}"),
        *_TOKENS,
        _TEN_TOKENS,
    ),
    _record(
        r.EFFICIENCY,
        "half the throughput, at a size with 80% efficiency",
        *_TWO_RANKS,
        *_TOKENS,
        _TEN_TOKENS,
        _study(m.STUDY_EFFICIENCY, 2, 0.8),
        value=0.4,
    ),
    Case(
        r.GPUS.name,
        "by phase, counting each run once",
        (
            *(_run(m.RUN_GPUS, f"8{TO_END}", pod=pod) for pod in ("a", "b")),
            _run(m.RUN_PHASE, f"1{TO_END}", phase="Running"),
            series(m.RUN_GPUS, {"namespace": "ns", "run": "other"}, f"4{TO_END}"),
            series(
                m.RUN_PHASE, {"namespace": "ns", "run": "other", "phase": "Pending"}, f"1{TO_END}"
            ),
        ),
        (
            ({"namespace": "ns", "phase": "Running"}, 8),
            ({"namespace": "ns", "phase": "Pending"}, 4),
        ),
    ),
    Case(
        r.FLEET_GOODPUT.name,
        "one run trains, one waits",
        (
            _run(m.PRODUCTIVE_SECONDS, f"0+60{TO_END}"),
            _ACTIVE,
            series(m.RUN_ACTIVE_SECONDS, {"namespace": "ns", "run": "waits"}, f"0+60{TO_END}"),
        ),
        (({"namespace": "ns"}, 0.5),),
    ),
    Case(
        r.REQUESTS_RATE.name,
        "all statuses",
        (_requests("200", 60), _requests("500", 30)),
        ((APP_LABELS, 1.5),),
    ),
    Case(
        r.ERRORS.name,
        "a third fails",
        (_requests("200", 60), _requests("503", 30)),
        ((ROUTE_LABELS, 1 / 3),),
    ),
    Case(r.ERRORS.name, "none fails", (_requests("200", 60),), ((ROUTE_LABELS, 0),)),
    Case(
        r.ERRORS.name,
        "refusals, wrong requests and pages do not hide that half fails",
        (
            _requests("200", 5),
            _requests("500", 5),
            _requests("429", 900),
            _requests("422", 900),
            _requests("200", 900, "/docs"),
        ),
        ((ROUTE_LABELS, 0.5), (ROUTE_LABELS | {"route": "/docs"}, 0)),
    ),
    Case(
        r.REFUSALS.name,
        "a third is refused",
        (_requests("200", 60), _requests("429", 30), _requests("200", 90, "/docs")),
        ((ROUTE_LABELS, 1 / 3), (ROUTE_LABELS | {"route": "/docs"}, 0)),
    ),
    Case(r.LATENCY.name, "one in ten takes 10 to 60 s", _latency(90, 10), ((ROUTE_LABELS, 35),)),
    Case(
        r.LATENCY.name,
        "refusals do not hide it",
        (*_latency(90, 10), *_latency(9000, 0, "429")),
        ((ROUTE_LABELS, 35),),
    ),
    Case(
        r.QUEUE.name,
        "sum over the pods of a release",
        (
            series(m.SERVING_QUEUE, POD_LABELS, f"3{TO_END}"),
            series(
                m.SERVING_QUEUE, POD_LABELS | {"pod": "bard-serving-6d4cf56db6-9bqwz"}, f"4{TO_END}"
            ),
            series(
                m.SERVING_QUEUE, POD_LABELS | {"pod": "else-serving-6d4cf56db6-9bqwz"}, f"9{TO_END}"
            ),
        ),
        ((APP_LABELS, 7), (APP_LABELS | {"app": "else-serving"}, 9)),
    ),
)

_STEP_STOPS = _run(m.STEP, f"0+5x30 150{TO_END}")
_STEP_RISES = _run(m.STEP, f"0+5{TO_END}")
_RUNNING = _run(m.RUN_PHASE, f"1{TO_END}", phase="Running")
_HUNG = _run(m.RUN_FAILED_ATTEMPTS, f"_x60 1{TO_END}", reason="Hang")
_ONE_RESTART = _run(m.RUN_RESTARTS, f"0x60 1{TO_END}")
_RECONCILING = series(m.RECONCILES, {"result": "ok"}, f"0+1{TO_END}")
_IDLE = series(m.RECONCILES, {"result": "ok"}, f"7{TO_END}")
_ONE_ACTIVE_RUN = series(m.RUNS, {"phase": "Running"}, f"1{TO_END}")
_REFUSED = POD_LABELS | {"result": "refused"}

ALERT_CASES = (
    _fires("TrainyardRunStalled", "no steps", _STEP_STOPS, _RUNNING, labels=RUN_LABELS),
    _silent("TrainyardRunStalled", "steps are completed", _STEP_RISES, _RUNNING),
    _silent("TrainyardRunStalled", "the run is suspended", _STEP_STOPS),
    _silent("TrainyardRunStalled", "a short evaluation", _STEP_STOPS, _RUNNING, at="40m"),
    _fires(
        "TrainyardRankStuck",
        "no progress for long",
        _run(m.STALLED_SECONDS, f"0+60{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent("TrainyardRankStuck", "all ranks make progress", _run(m.STALLED_SECONDS, f"2{TO_END}")),
    _fires("TrainyardRunHung", "an attempt hung", _HUNG, _ONE_RESTART, labels=RUN_LABELS),
    _silent("TrainyardRunHung", "the hang was over an hour ago", _HUNG, _ONE_RESTART, at="150m"),
    _silent(
        "TrainyardRunHung",
        "another reason",
        _ONE_RESTART,
        _run(m.RUN_FAILED_ATTEMPTS, f"1{TO_END}", reason="NodeLost"),
    ),
    _fires(
        "TrainyardCheckpointTooOld",
        "an old checkpoint",
        _run(m.CHECKPOINT_TIME, f"1000{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardCheckpointTooOld", "a recent checkpoint", _run(m.CHECKPOINT_TIME, f"5000{TO_END}")
    ),
    _fires(
        "TrainyardRunRestarting",
        "three restarts",
        _run(m.RUN_RESTARTS, f"0x50 1 2 3{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent("TrainyardRunRestarting", "one restart", _ONE_RESTART),
    _fires(
        "TrainyardRunFailed",
        "the run failed",
        _run(m.RUN_PHASE, f"1{TO_END}", phase="Failed"),
        labels=RUN_LABELS,
    ),
    _silent("TrainyardRunFailed", "the run is running", _RUNNING),
    _fires(
        "TrainyardRunWaiting",
        "waiting for over 30 minutes",
        _run(m.RUN_WAITING_SECONDS, f"0+60{TO_END}", queue="gold"),
        labels=RUN_LABELS | {"queue": "gold"},
    ),
    _silent(
        "TrainyardRunWaiting",
        "waiting for less than 30 minutes",
        _run(m.RUN_WAITING_SECONDS, f"0+60{TO_END}"),
        at="20m",
    ),
    _fires(
        "TrainyardGoodputLow",
        "a third of the time",
        _run(m.PRODUCTIVE_SECONDS, f"0+20{TO_END}"),
        _ACTIVE,
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardGoodputLow",
        "most of the time",
        _run(m.PRODUCTIVE_SECONDS, f"0+55{TO_END}"),
        _ACTIVE,
    ),
    _fires(
        "TrainyardRunSlowerThanStudy",
        "half as fast",
        *_TWO_RANKS,
        *_TOKENS,
        _TEN_TOKENS,
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardRunSlowerThanStudy",
        "as fast as the study",
        *_TWO_RANKS,
        _study(m.STUDY_TOKENS_PER_SECOND, 2, 10),
        _TEN_TOKENS,
    ),
    _fires("TrainyardNoLeader", "no operator is scraped", labels={}),
    _fires(
        "TrainyardNoLeader",
        "two replicas, none leads",
        *(series(m.LEADER, {"pod": pod}, f"0{TO_END}") for pod in ("a", "b")),
        labels={},
    ),
    _silent(
        "TrainyardNoLeader",
        "one of two replicas leads",
        series(m.LEADER, {"pod": "a"}, f"0{TO_END}"),
        series(m.LEADER, {"pod": "b"}, f"1{TO_END}"),
    ),
    _fires(
        "TrainyardNotReconciling", "active runs, no reconciles", _IDLE, _ONE_ACTIVE_RUN, labels={}
    ),
    _silent("TrainyardNotReconciling", "active runs, reconciles", _RECONCILING, _ONE_ACTIVE_RUN),
    _silent(
        "TrainyardNotReconciling",
        "no active runs",
        _IDLE,
        series(m.RUNS, {"phase": "Succeeded"}, f"5{TO_END}"),
    ),
    _fires(
        "TrainyardReconcilesFail",
        "failing for 15 minutes",
        series(m.FAILING, {}, f"2{TO_END}"),
        labels={},
    ),
    _silent("TrainyardReconcilesFail", "none failing", series(m.FAILING, {}, f"0{TO_END}")),
    _fires(
        "TrainyardServingErrors",
        "one in ten fails",
        _requests("200", 90),
        _requests("500", 10),
        labels=ROUTE_LABELS,
    ),
    _silent(
        "TrainyardServingErrors",
        "one in a hundred fails",
        _requests("200", 99),
        _requests("500", 1),
    ),
    _silent("TrainyardServingErrors", "client errors only", _requests("422", 99)),
    _silent("TrainyardServingErrors", "refusals only", _requests("200", 5), _requests("429", 95)),
    _fires("TrainyardServingSlow", "p95 of 35 s", *_latency(90, 10), labels=ROUTE_LABELS),
    _silent("TrainyardServingSlow", "p95 under 10 s", *_latency(100, 0)),
    _fires(
        "TrainyardServingOverloaded",
        "95% are refused",
        _requests("200", 5),
        _requests("429", 95),
        labels=ROUTE_LABELS,
    ),
    _silent(
        "TrainyardServingOverloaded",
        "one in twenty is refused",
        _requests("200", 95),
        _requests("429", 5),
    ),
    _silent(
        "TrainyardServingOverloaded",
        "a short burst",
        _requests("200", 60),
        series(m.REQUESTS, ROUTE_OF_POD | {"code": "429"}, f"0x50 900{TO_END}"),
        at="57m",
    ),
    _fires(
        "TrainyardServingRefusesModels",
        "one refused",
        series(m.MODEL_SWAPS, _REFUSED, "0x60 1x100"),
        labels=POD_LABELS,
    ),
    _silent(
        "TrainyardServingRefusesModels",
        "one loaded",
        series(m.MODEL_SWAPS, POD_LABELS | {"result": "loaded"}, "0x60 1x100"),
    ),
    _fires(
        "TrainyardServingNoModel",
        "no model for over ten minutes",
        series(m.SERVING_READY, POD_LABELS, f"0{TO_END}"),
        labels=POD_LABELS,
    ),
    _silent(
        "TrainyardServingNoModel",
        "a model is served",
        series(m.SERVING_READY, POD_LABELS, f"1{TO_END}"),
    ),
    _silent(
        "TrainyardServingNoModel",
        "a model that takes eight minutes to load",
        series(m.SERVING_READY, POD_LABELS, f"0x8 1{TO_END}"),
        at="20m",
    ),
)
