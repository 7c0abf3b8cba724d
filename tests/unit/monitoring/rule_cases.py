"""Cases for the recording rules: input series with a sample per minute, and what they yield."""

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


def of_run(metric: object, values: str, **labels: str) -> Series:
    return series(metric, RUN_LABELS | labels, values)


def of_study(metric: object, processes: int, value: float) -> Series:
    return series(metric, STUDY_LABELS | {"processes": str(processes)}, f"{value}{TO_END}")


ROUTE_OF_POD = POD_LABELS | {"route": "/predict"}


def requests(code: str, per_minute: int, route: str = "/predict") -> Series:
    labels = POD_LABELS | {"route": route, "code": code}
    return series(m.REQUESTS, labels, f"0+{per_minute}{TO_END}")


def latency(fast: int, slow: int, code: str = "200") -> tuple[Series, ...]:
    """Requests per minute that take up to 10 s (`fast`), and 10 to 60 s (`slow`)."""
    counts = {"10": fast, "60": fast + slow, "+Inf": fast + slow}
    labels = POD_LABELS | {"route": "/predict", "code": code}
    return tuple(
        series(f"{m.REQUEST_SECONDS}_bucket", labels | {"le": le}, f"0+{count}{TO_END}")
        for le, count in counts.items()
    )


TWO_RANKS = (
    of_run(m.WORLD_SIZE, f"2{TO_END}"),
    of_run(m.RUN_STUDY, f"1{TO_END}", study="s"),
)
TOKENS = (of_study(m.STUDY_TOKENS_PER_SECOND, 2, 20), of_study(m.STUDY_TOKENS_PER_SECOND, 4, 30))
_SAMPLES = (of_study(m.STUDY_SAMPLES_PER_SECOND, 2, 4), of_study(m.STUDY_SAMPLES_PER_SECOND, 4, 6))
TEN_TOKENS = of_run(m.TOKENS, f"0+600{TO_END}")
_ONE_SAMPLE = of_run(m.SAMPLES, f"0+60{TO_END}")
ACTIVE = of_run(m.RUN_ACTIVE_SECONDS, f"0+60{TO_END}")

RECORD_CASES = (
    _record(r.TOKENS_RATE, "tokens per second", TEN_TOKENS, value=10),
    _record(
        r.TOKENS_RATE,
        "a new attempt has another pod, whose counter starts at 0",
        of_run(m.TOKENS, "0+600x50", pod="r-1-0"),
        of_run(m.TOKENS, "_x60 0+600x50", pod="r-2-0"),
        value=10,
    ),
    _record(r.SAMPLES_RATE, "samples per second", _ONE_SAMPLE, value=1),
    _record(
        r.GOODPUT,
        "half of the time in productive steps",
        of_run(m.PRODUCTIVE_SECONDS, f"0+30{TO_END}"),
        ACTIVE,
        value=0.5,
    ),
    _record(r.GOODPUT, "a waiting run has a goodput of 0", ACTIVE, value=0),
    _record(
        r.GOODPUT,
        "capped at 1 when clocks differ",
        of_run(m.PRODUCTIVE_SECONDS, f"0+61{TO_END}"),
        ACTIVE,
        value=1,
    ),
    _record(
        r.GOODPUT,
        "no goodput for a suspended run",
        of_run(m.PRODUCTIVE_SECONDS, f"0{TO_END}"),
        of_run(m.RUN_ACTIVE_SECONDS, f"600{TO_END}"),
    ),
    _record(
        r.RESTARTS,
        "one restart, exported by two operators",
        *(of_run(m.RUN_RESTARTS, "0x60 1x100", pod=pod) for pod in ("a", "b")),
        value=1,
    ),
    _record(
        r.CHECKPOINT_AGE,
        "checkpoint saved at 5400 s",
        of_run(m.CHECKPOINT_TIME, f"5400{TO_END}"),
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
        of_run(m.RUN_INFO, f"1{TO_END}", job="j", instance="i", recipe="gpt"),
        value=1000,
    ),
    _record(r.EXPECTED_TOKENS, "throughput of two processes", *TWO_RANKS, *TOKENS, value=20),
    _record(r.EXPECTED_TOKENS, "a size without a result in the study", *TWO_RANKS, TOKENS[1]),
    _record(r.EXPECTED_SAMPLES, "throughput of two processes", *TWO_RANKS, *_SAMPLES, value=4),
    _record(
        r.STUDY_RATIO,
        "by tokens",
        *TWO_RANKS,
        *TOKENS,
        *_SAMPLES,
        TEN_TOKENS,
        _ONE_SAMPLE,
        value=0.5,
    ),
    _record(
        r.STUDY_RATIO,
        "by samples if there are no tokens",
        *TWO_RANKS,
        *_SAMPLES,
        _ONE_SAMPLE,
        value=0.25,
    ),
    _record(
        r.STUDY_RATIO,
        "a run without a study",
        of_run(m.WORLD_SIZE, f"2{TO_END}"),
        *TOKENS,
        TEN_TOKENS,
    ),
    _record(
        r.EFFICIENCY,
        "half the throughput, at a size with 80% efficiency",
        *TWO_RANKS,
        *TOKENS,
        TEN_TOKENS,
        of_study(m.STUDY_EFFICIENCY, 2, 0.8),
        value=0.4,
    ),
    Case(
        r.GPUS.name,
        "by phase, counting each run once",
        (
            *(of_run(m.RUN_GPUS, f"8{TO_END}", pod=pod) for pod in ("a", "b")),
            of_run(m.RUN_PHASE, f"1{TO_END}", phase="Running"),
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
            of_run(m.PRODUCTIVE_SECONDS, f"0+60{TO_END}"),
            ACTIVE,
            series(m.RUN_ACTIVE_SECONDS, {"namespace": "ns", "run": "waits"}, f"0+60{TO_END}"),
        ),
        (({"namespace": "ns"}, 0.5),),
    ),
    Case(
        r.REQUESTS_RATE.name,
        "all statuses",
        (requests("200", 60), requests("500", 30)),
        ((APP_LABELS, 1.5),),
    ),
    Case(
        r.ERRORS.name,
        "a third fails",
        (requests("200", 60), requests("503", 30)),
        ((ROUTE_LABELS, 1 / 3),),
    ),
    Case(r.ERRORS.name, "none fails", (requests("200", 60),), ((ROUTE_LABELS, 0),)),
    Case(
        r.ERRORS.name,
        "refusals, wrong requests and pages do not hide that half fails",
        (
            requests("200", 5),
            requests("500", 5),
            requests("429", 900),
            requests("422", 900),
            requests("200", 900, "/docs"),
        ),
        ((ROUTE_LABELS, 0.5), (ROUTE_LABELS | {"route": "/docs"}, 0)),
    ),
    Case(
        r.REFUSALS.name,
        "a third is refused",
        (requests("200", 60), requests("429", 30), requests("200", 90, "/docs")),
        ((ROUTE_LABELS, 1 / 3), (ROUTE_LABELS | {"route": "/docs"}, 0)),
    ),
    Case(r.LATENCY.name, "one in ten takes 10 to 60 s", latency(90, 10), ((ROUTE_LABELS, 35),)),
    Case(
        r.LATENCY.name,
        "refusals do not hide it",
        (*latency(90, 10), *latency(9000, 0, "429")),
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
