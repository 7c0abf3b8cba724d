"""What each rule must make of some series, as promtool tests it: a sample a minute."""

from collections.abc import Mapping
from dataclasses import dataclass

from monitoring import records as r
from trainyard_api import metrics as m

OF_RUN = {"namespace": "ns", "run": "r"}
OF_STUDY = {"namespace": "ns", "study": "s", "configuration": "c", "source": "measured"}
# As a Deployment names its pods.
POD = {"namespace": "ns", "pod": "bard-serving-6d4cf56db6-x7k2p"}
OF_APP = {"namespace": "ns", "app": "bard-serving"}
FOR_EVER = "x200"


def series(metric: object, labels: Mapping[str, str], values: str) -> tuple[str, str]:
    """A series in promtool's notation; `0+60x10` goes from 0 to 600 in ten minutes."""
    return selector(metric, labels), values


def selector(metric: object, labels: Mapping[str, str]) -> str:
    matchers = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{metric}{{{matchers}}}"


@dataclass(frozen=True)
class Case:
    """Of `rule`, with these series: the samples it has at `at`; an alert's are 1 while it fires."""

    rule: str
    what: str
    series: tuple[tuple[str, str], ...]
    samples: tuple[tuple[Mapping[str, str], float], ...]
    at: str = "100m"


def _record(rule: object, what: str, *given: tuple[str, str], **expected: float) -> Case:
    """Of a rule per run: `value` is that of run r; without it there must be none."""
    return Case(str(rule), what, given, tuple((OF_RUN, value) for value in expected.values()))


def _fires(rule: str, what: str, *given: tuple[str, str], labels: Mapping[str, str]) -> Case:
    return Case(rule, what, given, ((labels, 1),))


def _quiet(rule: str, what: str, *given: tuple[str, str], at: str = "100m") -> Case:
    return Case(rule, what, given, (), at)


def _run(metric: object, values: str, **labels: str) -> tuple[str, str]:
    return series(metric, OF_RUN | labels, values)


def _study(metric: object, processes: int, value: float) -> tuple[str, str]:
    return series(metric, OF_STUDY | {"processes": str(processes)}, f"{value}{FOR_EVER}")


def _requests(code: str, per_minute: int) -> tuple[str, str]:
    labels = POD | {"route": "/predict", "code": code}
    return series(m.REQUESTS, labels, f"0+{per_minute}{FOR_EVER}")


def _latency(fast: int, slow: int) -> tuple[tuple[str, str], ...]:
    """So many requests a minute of up to 10 s and of 10 to 60 s."""
    counts = {"10": fast, "60": fast + slow, "+Inf": fast + slow}
    of = POD | {"route": "/predict"}
    return tuple(
        series(f"{m.REQUEST_SECONDS}_bucket", of | {"le": le}, f"0+{count}{FOR_EVER}")
        for le, count in counts.items()
    )


_TWO_OF = (
    _run(m.WORLD_SIZE, f"2{FOR_EVER}"),
    _run(m.RUN_STUDY, f"1{FOR_EVER}", study="s"),
)
_TOKENS = (_study(m.STUDY_TOKENS_PER_SECOND, 2, 20), _study(m.STUDY_TOKENS_PER_SECOND, 4, 30))
_SAMPLES = (_study(m.STUDY_SAMPLES_PER_SECOND, 2, 4), _study(m.STUDY_SAMPLES_PER_SECOND, 4, 6))
_TEN_TOKENS = _run(m.TOKENS, f"0+600{FOR_EVER}")
_ONE_SAMPLE = _run(m.SAMPLES, f"0+60{FOR_EVER}")
_ACTIVE = _run(m.RUN_ACTIVE_SECONDS, f"0+60{FOR_EVER}")

RECORD_CASES = (
    _record(r.TOKENS_RATE, "tokens a second", _TEN_TOKENS, value=10),
    _record(
        r.TOKENS_RATE,
        "a new attempt has another pod, whose counter begins at 0",
        _run(m.TOKENS, "0+600x50", pod="r-1-0"),
        _run(m.TOKENS, "_x60 0+600x50", pod="r-2-0"),
        value=10,
    ),
    _record(r.SAMPLES_RATE, "samples a second", _ONE_SAMPLE, value=1),
    _record(
        r.GOODPUT,
        "half the time in productive steps",
        _run(m.PRODUCTIVE_SECONDS, f"0+30{FOR_EVER}"),
        _ACTIVE,
        value=0.5,
    ),
    _record(r.GOODPUT, "a run that waits has none", _ACTIVE, value=0),
    _record(
        r.GOODPUT,
        "clocks differ: never above 1",
        _run(m.PRODUCTIVE_SECONDS, f"0+61{FOR_EVER}"),
        _ACTIVE,
        value=1,
    ),
    _record(
        r.GOODPUT,
        "a suspended run isn't judged",
        _run(m.PRODUCTIVE_SECONDS, f"0{FOR_EVER}"),
        _run(m.RUN_ACTIVE_SECONDS, f"600{FOR_EVER}"),
    ),
    _record(
        r.RESTARTS,
        "one, told by two operators",
        *(_run(m.RUN_RESTARTS, "0x60 1x100", pod=pod) for pod in ("a", "b")),
        value=1,
    ),
    _record(
        r.CHECKPOINT_AGE, "saved at 5400 s", _run(m.CHECKPOINT_TIME, f"5400{FOR_EVER}"), value=600
    ),
    _record(
        r.CHECKPOINT_AGE,
        "none yet: since the process began",
        series(
            m.PROCESS_START_TIME,
            {"namespace": "ns", "job": "j", "instance": "i"},
            f"5000{FOR_EVER}",
        ),
        _run(m.RUN_INFO, f"1{FOR_EVER}", job="j", instance="i", recipe="gpt"),
        value=1000,
    ),
    _record(r.EXPECTED_TOKENS, "what two processes do", *_TWO_OF, *_TOKENS, value=20),
    _record(r.EXPECTED_TOKENS, "a size the study knows nothing of", *_TWO_OF, _TOKENS[1]),
    _record(r.EXPECTED_SAMPLES, "what two processes do", *_TWO_OF, *_SAMPLES, value=4),
    _record(
        r.OF_STUDY, "by tokens", *_TWO_OF, *_TOKENS, *_SAMPLES, _TEN_TOKENS, _ONE_SAMPLE, value=0.5
    ),
    _record(
        r.OF_STUDY,
        "by samples where there are no tokens",
        *_TWO_OF,
        *_SAMPLES,
        _ONE_SAMPLE,
        value=0.25,
    ),
    _record(
        r.OF_STUDY,
        "a run without a study",
        _run(m.WORLD_SIZE, f"2{FOR_EVER}"),
        *_TOKENS,
        _TEN_TOKENS,
    ),
    _record(
        r.EFFICIENCY,
        "of 80% at that size, half",
        *_TWO_OF,
        *_TOKENS,
        _TEN_TOKENS,
        _study(m.STUDY_EFFICIENCY, 2, 0.8),
        value=0.4,
    ),
    Case(
        r.GPUS.name,
        "by phase, each run once",
        (
            *(_run(m.RUN_GPUS, f"8{FOR_EVER}", pod=pod) for pod in ("a", "b")),
            _run(m.RUN_PHASE, f"1{FOR_EVER}", phase="Running"),
            series(m.RUN_GPUS, {"namespace": "ns", "run": "other"}, f"4{FOR_EVER}"),
            series(
                m.RUN_PHASE, {"namespace": "ns", "run": "other", "phase": "Pending"}, f"1{FOR_EVER}"
            ),
        ),
        (
            ({"namespace": "ns", "phase": "Running"}, 8),
            ({"namespace": "ns", "phase": "Pending"}, 4),
        ),
    ),
    Case(
        r.FLEET_GOODPUT.name,
        "a run that trains beside one that waits",
        (
            _run(m.PRODUCTIVE_SECONDS, f"0+60{FOR_EVER}"),
            _ACTIVE,
            series(m.RUN_ACTIVE_SECONDS, {"namespace": "ns", "run": "waits"}, f"0+60{FOR_EVER}"),
        ),
        (({"namespace": "ns"}, 0.5),),
    ),
    Case(
        r.REQUESTS_RATE.name, "all", (_requests("200", 60), _requests("500", 30)), ((OF_APP, 1.5),)
    ),
    Case(
        r.ERRORS.name, "a third", (_requests("200", 60), _requests("503", 30)), ((OF_APP, 1 / 3),)
    ),
    Case(r.ERRORS.name, "none", (_requests("200", 60), _requests("429", 30)), ((OF_APP, 0),)),
    Case(r.LATENCY.name, "one in ten takes 10 to 60 s", _latency(90, 10), ((OF_APP, 35),)),
    Case(
        r.QUEUE.name,
        "of all pods of the release",
        (
            series(m.SERVING_QUEUE, POD, f"3{FOR_EVER}"),
            series(m.SERVING_QUEUE, POD | {"pod": "bard-serving-6d4cf56db6-9bqwz"}, f"4{FOR_EVER}"),
            series(m.SERVING_QUEUE, POD | {"pod": "else-serving-6d4cf56db6-9bqwz"}, f"9{FOR_EVER}"),
        ),
        ((OF_APP, 7), (OF_APP | {"app": "else-serving"}, 9)),
    ),
)

_STANDS = _run(m.STEP, f"0+5x30 150{FOR_EVER}")
_GOES = _run(m.STEP, f"0+5{FOR_EVER}")
_RUNNING = _run(m.RUN_PHASE, f"1{FOR_EVER}", phase="Running")
_HUNG = _run(m.RUN_FAILED_ATTEMPTS, f"_x60 1{FOR_EVER}", reason="Hang")
_ONE_RESTART = _run(m.RUN_RESTARTS, f"0x60 1{FOR_EVER}")
_OPERATING = series(m.RECONCILES, {"result": "ok"}, f"0+1{FOR_EVER}")
_IDLE = series(m.RECONCILES, {"result": "ok"}, f"7{FOR_EVER}")
_ONE_ACTIVE = series(m.RUNS, {"phase": "Running"}, f"1{FOR_EVER}")
_SWAPS = POD | {"result": "refused"}

ALERT_CASES = (
    _fires("TrainyardRunStalled", "no step for long", _STANDS, _RUNNING, labels=OF_RUN),
    _quiet("TrainyardRunStalled", "it goes on", _GOES, _RUNNING),
    _quiet("TrainyardRunStalled", "it is suspended", _STANDS),
    _quiet("TrainyardRunStalled", "a short evaluation", _STANDS, _RUNNING, at="40m"),
    _fires(
        "TrainyardRankStuck", "stuck", _run(m.STALLED_SECONDS, f"0+60{FOR_EVER}"), labels=OF_RUN
    ),
    _quiet("TrainyardRankStuck", "all go on", _run(m.STALLED_SECONDS, f"2{FOR_EVER}")),
    _fires("TrainyardRunHung", "an attempt has hung", _HUNG, _ONE_RESTART, labels=OF_RUN),
    _quiet("TrainyardRunHung", "that was long ago", _HUNG, _ONE_RESTART, at="150m"),
    _quiet(
        "TrainyardRunHung",
        "another fault",
        _ONE_RESTART,
        _run(m.RUN_FAILED_ATTEMPTS, f"1{FOR_EVER}", reason="NodeLost"),
    ),
    _fires(
        "TrainyardCheckpointTooOld",
        "old",
        _run(m.CHECKPOINT_TIME, f"1000{FOR_EVER}"),
        labels=OF_RUN,
    ),
    _quiet("TrainyardCheckpointTooOld", "new", _run(m.CHECKPOINT_TIME, f"5000{FOR_EVER}")),
    _fires(
        "TrainyardRunRestarting",
        "three",
        _run(m.RUN_RESTARTS, f"0x50 1 2 3{FOR_EVER}"),
        labels=OF_RUN,
    ),
    _quiet("TrainyardRunRestarting", "one", _ONE_RESTART),
    _fires(
        "TrainyardRunFailed",
        "it has",
        _run(m.RUN_PHASE, f"1{FOR_EVER}", phase="Failed"),
        labels=OF_RUN,
    ),
    _quiet("TrainyardRunFailed", "it runs", _RUNNING),
    _fires(
        "TrainyardRunWaiting",
        "for long",
        _run(m.RUN_WAITING_SECONDS, f"0+60{FOR_EVER}", queue="gold"),
        labels=OF_RUN | {"queue": "gold"},
    ),
    _quiet(
        "TrainyardRunWaiting",
        "not yet for long",
        _run(m.RUN_WAITING_SECONDS, f"0+60{FOR_EVER}"),
        at="20m",
    ),
    _fires(
        "TrainyardGoodputLow",
        "a third",
        _run(m.PRODUCTIVE_SECONDS, f"0+20{FOR_EVER}"),
        _ACTIVE,
        labels=OF_RUN,
    ),
    _quiet(
        "TrainyardGoodputLow",
        "most of the time",
        _run(m.PRODUCTIVE_SECONDS, f"0+55{FOR_EVER}"),
        _ACTIVE,
    ),
    _fires(
        "TrainyardRunSlowerThanStudy",
        "half as fast",
        *_TWO_OF,
        *_TOKENS,
        _TEN_TOKENS,
        labels=OF_RUN,
    ),
    _quiet(
        "TrainyardRunSlowerThanStudy",
        "as fast",
        *_TWO_OF,
        _study(m.STUDY_TOKENS_PER_SECOND, 2, 10),
        _TEN_TOKENS,
    ),
    _fires("TrainyardNoLeader", "none is scraped", labels={}),
    _fires(
        "TrainyardNoLeader",
        "two that wait",
        *(series(m.LEADER, {"pod": pod}, f"0{FOR_EVER}") for pod in ("a", "b")),
        labels={},
    ),
    _quiet(
        "TrainyardNoLeader",
        "one of two leads",
        series(m.LEADER, {"pod": "a"}, f"0{FOR_EVER}"),
        series(m.LEADER, {"pod": "b"}, f"1{FOR_EVER}"),
    ),
    _fires("TrainyardNotReconciling", "active runs, no reconcile", _IDLE, _ONE_ACTIVE, labels={}),
    _quiet("TrainyardNotReconciling", "it reconciles", _OPERATING, _ONE_ACTIVE),
    _quiet(
        "TrainyardNotReconciling",
        "nothing to do",
        _IDLE,
        series(m.RUNS, {"phase": "Succeeded"}, f"5{FOR_EVER}"),
    ),
    _fires("TrainyardReconcilesFail", "for long", series(m.FAILING, {}, f"2{FOR_EVER}"), labels={}),
    _quiet("TrainyardReconcilesFail", "none", series(m.FAILING, {}, f"0{FOR_EVER}")),
    _fires(
        "TrainyardServingErrors",
        "one in ten",
        _requests("200", 90),
        _requests("500", 10),
        labels=OF_APP,
    ),
    _quiet("TrainyardServingErrors", "one in a hundred", _requests("200", 99), _requests("500", 1)),
    _quiet("TrainyardServingErrors", "the callers' own mistakes", _requests("422", 99)),
    _fires("TrainyardServingSlow", "35 s", *_latency(90, 10), labels=OF_APP),
    _quiet("TrainyardServingSlow", "under 10 s", *_latency(100, 0)),
    _fires(
        "TrainyardServingRefusesModels",
        "one",
        series(m.MODEL_SWAPS, _SWAPS, "0x60 1x100"),
        labels=POD,
    ),
    _quiet(
        "TrainyardServingRefusesModels",
        "loaded",
        series(m.MODEL_SWAPS, POD | {"result": "loaded"}, "0x60 1x100"),
    ),
    _fires(
        "TrainyardServingNoModel",
        "for long",
        series(m.SERVING_QUEUE, POD, f"0{FOR_EVER}"),
        labels=POD,
    ),
    _quiet(
        "TrainyardServingNoModel",
        "it has one",
        series(m.SERVING_QUEUE, POD, f"0{FOR_EVER}"),
        series(m.MODEL_INFO, POD | {"run": "r"}, f"1{FOR_EVER}"),
    ),
)
