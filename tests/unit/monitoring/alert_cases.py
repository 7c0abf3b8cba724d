"""Cases for the alerts: input series, and whether an alert fires; see rule_cases.py."""

from collections.abc import Mapping

from tests.unit.monitoring.rule_cases import (
    ACTIVE,
    POD_LABELS,
    ROUTE_LABELS,
    ROUTE_OF_POD,
    RUN_LABELS,
    TEN_TOKENS,
    TO_END,
    TOKENS,
    TWO_RANKS,
    Case,
    Series,
    latency,
    of_run,
    of_study,
    requests,
    series,
)
from trainyard_api import metrics as m


def _fires(rule: str, description: str, *inputs: Series, labels: Mapping[str, str]) -> Case:
    return Case(rule, description, inputs, ((labels, 1),))


def _silent(rule: str, description: str, *inputs: Series, at: str = "100m") -> Case:
    return Case(rule, description, inputs, (), at)


_STEP_STOPS = of_run(m.STEP, f"0+5x30 150{TO_END}")
_STEP_RISES = of_run(m.STEP, f"0+5{TO_END}")
_RUNNING = of_run(m.RUN_PHASE, f"1{TO_END}", phase="Running")
_HUNG = of_run(m.RUN_FAILED_ATTEMPTS, f"_x60 1{TO_END}", reason="Hang")
_ONE_RESTART = of_run(m.RUN_RESTARTS, f"0x60 1{TO_END}")
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
        of_run(m.STALLED_SECONDS, f"0+60{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardRankStuck", "all ranks make progress", of_run(m.STALLED_SECONDS, f"2{TO_END}")
    ),
    _fires("TrainyardRunHung", "an attempt hung", _HUNG, _ONE_RESTART, labels=RUN_LABELS),
    _silent("TrainyardRunHung", "the hang was over an hour ago", _HUNG, _ONE_RESTART, at="150m"),
    _silent(
        "TrainyardRunHung",
        "another reason",
        _ONE_RESTART,
        of_run(m.RUN_FAILED_ATTEMPTS, f"1{TO_END}", reason="NodeLost"),
    ),
    _fires(
        "TrainyardCheckpointTooOld",
        "an old checkpoint",
        of_run(m.CHECKPOINT_TIME, f"1000{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardCheckpointTooOld",
        "a recent checkpoint",
        of_run(m.CHECKPOINT_TIME, f"5000{TO_END}"),
    ),
    _fires(
        "TrainyardRunRestarting",
        "three restarts",
        of_run(m.RUN_RESTARTS, f"0x50 1 2 3{TO_END}"),
        labels=RUN_LABELS,
    ),
    _silent("TrainyardRunRestarting", "one restart", _ONE_RESTART),
    _fires(
        "TrainyardRunFailed",
        "the run failed",
        of_run(m.RUN_PHASE, f"1{TO_END}", phase="Failed"),
        labels=RUN_LABELS,
    ),
    _silent("TrainyardRunFailed", "the run is running", _RUNNING),
    _fires(
        "TrainyardRunWaiting",
        "waiting for over 30 minutes",
        of_run(m.RUN_WAITING_SECONDS, f"0+60{TO_END}", queue="gold"),
        labels=RUN_LABELS | {"queue": "gold"},
    ),
    _silent(
        "TrainyardRunWaiting",
        "waiting for less than 30 minutes",
        of_run(m.RUN_WAITING_SECONDS, f"0+60{TO_END}"),
        at="20m",
    ),
    _fires(
        "TrainyardGoodputLow",
        "a third of the time",
        of_run(m.PRODUCTIVE_SECONDS, f"0+20{TO_END}"),
        ACTIVE,
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardGoodputLow",
        "most of the time",
        of_run(m.PRODUCTIVE_SECONDS, f"0+55{TO_END}"),
        ACTIVE,
    ),
    _fires(
        "TrainyardRunSlowerThanStudy",
        "half as fast",
        *TWO_RANKS,
        *TOKENS,
        TEN_TOKENS,
        labels=RUN_LABELS,
    ),
    _silent(
        "TrainyardRunSlowerThanStudy",
        "as fast as the study",
        *TWO_RANKS,
        of_study(m.STUDY_TOKENS_PER_SECOND, 2, 10),
        TEN_TOKENS,
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
        requests("200", 90),
        requests("500", 10),
        labels=ROUTE_LABELS,
    ),
    _silent(
        "TrainyardServingErrors",
        "one in a hundred fails",
        requests("200", 99),
        requests("500", 1),
    ),
    _silent("TrainyardServingErrors", "client errors only", requests("422", 99)),
    _silent("TrainyardServingErrors", "refusals only", requests("200", 5), requests("429", 95)),
    _fires("TrainyardServingSlow", "p95 of 35 s", *latency(90, 10), labels=ROUTE_LABELS),
    _silent("TrainyardServingSlow", "p95 under 10 s", *latency(100, 0)),
    _fires(
        "TrainyardServingOverloaded",
        "95% are refused",
        requests("200", 5),
        requests("429", 95),
        labels=ROUTE_LABELS,
    ),
    _silent(
        "TrainyardServingOverloaded",
        "one in twenty is refused",
        requests("200", 95),
        requests("429", 5),
    ),
    _silent(
        "TrainyardServingOverloaded",
        "a short burst",
        requests("200", 60),
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
