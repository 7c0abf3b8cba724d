"""A script's runtime status becomes the run's report and metrics; bad input can't break them."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from trainyard_agent import exposition
from trainyard_agent import report as agent_report
from trainyard_agent.report import Report
from trainyard_api import metrics
from trainyard_api.base import parse_known
from trainyard_api.progress import ProgressReport


def status(percent: Any = 40, eta: Any = 12, **values: Any) -> dict[str, Any]:
    """As transformers posts it: every value is text."""
    listed = [{"name": name, "value": str(value)} for name, value in values.items()]
    body = {"progressPercentage": percent, "estimatedRemainingSeconds": eta, "metrics": listed}
    return {"trainerStatus": body}


CHECKPOINT = {"step": 7, "digest": f"sha256:{'a' * 64}", "time": "2026-01-02T03:04:05+00:00"}
MODEL = {"step": 8, "digest": f"sha256:{'b' * 64}", "path": "models/step-00000008"}


def test_what_a_script_has_saved_is_in_its_report() -> None:
    report = Report("mine", 3)
    saved = {"checkpoint": CHECKPOINT, "model": MODEL, "resumedFromStep": 5}
    report.update(status(current_step=9) | saved, world_size=1)
    found = parsed(report)
    assert found.last_checkpoint
    assert found.last_checkpoint.to_wire() == CHECKPOINT | {"time": "2026-01-02T03:04:05Z"}
    assert found.model
    assert found.model.to_wire() == MODEL
    assert found.resumed_from_step == 5
    assert found.started_from is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("step 40 of run a", "step 40 of run a"),
        (" two\n lines\x1b[2J ", "two lines[2J"),
        ("x" * 5000, "x" * 1200),
        ("", None),
        (["a"], None),
    ],
)
def test_what_a_script_began_with_is_one_line(given: Any, shown: str | None) -> None:
    report = Report("mine", 3)
    report.update(status(current_step=40) | {"startedFrom": given}, world_size=1)
    assert parsed(report).started_from == shown


@pytest.mark.parametrize(
    "saved",
    [
        {"checkpoint": CHECKPOINT | {"step": -1}},
        {"checkpoint": CHECKPOINT | {"step": True}},
        {"checkpoint": CHECKPOINT | {"step": 2**80}},
        {"checkpoint": CHECKPOINT | {"digest": "sha256:" + "a" * 65}},
        {"checkpoint": CHECKPOINT | {"time": "2026-01-02T03:04:05"}},
        {"checkpoint": CHECKPOINT | {"time": "now"}},
        {"checkpoint": CHECKPOINT | {"time": 5}},
        {"checkpoint": [CHECKPOINT]},
        {"model": MODEL | {"path": "models/../../etc"}},
        {"model": MODEL | {"path": "/etc"}},
        {"model": {}},
        {"resumedFromStep": "x"},
    ],
)
def test_what_is_not_a_checkpoint_or_a_model_is_ignored(saved: dict[str, Any]) -> None:
    report = Report("mine", 3)
    report.update(status(current_step=9) | saved, world_size=1)
    found = parsed(report)
    assert (found.last_checkpoint, found.model, found.resumed_from_step) == (None, None, None)


def parsed(report: Report) -> ProgressReport:
    found = parse_known(ProgressReport, report.document())
    assert found
    return found


def samples(report: Report) -> dict[tuple[str, str], float]:
    """Values of /metrics by name and metric label, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(report.metrics())
    found = [sample for family in families for sample in family.samples]
    assert {sample.labels["run"] for sample in found} == {report.run}
    return {(sample.name, sample.labels.get("metric", "")): sample.value for sample in found}


def test_a_status_of_transformers_is_a_report() -> None:
    report = Report("mine", 3)
    assert report.document() is None
    step = {"current_step": 20, "total_steps": 50, "loss": 1.25, "learning_rate": 0.001}
    report.update(status(**step, grad_norm=0.5, eval_loss=1.5, eval_accuracy=0.25), world_size=2)
    found = parsed(report)
    assert (found.run, found.attempt, found.phase) == ("mine", 3, "training")
    assert (found.step, found.total_steps, found.eta_seconds) == (20, 50, 12)
    assert (found.loss, found.eval_loss) == (1.25, 1.5)
    assert found.evaluation == {"eval_loss": 1.5, "eval_accuracy": 0.25}
    assert (found.world_size, found.ranks_joined) == (2, 2)
    assert samples(report) == {
        ("trainyard_attempt", ""): 3,
        ("trainyard_step", ""): 20,
        ("trainyard_total_steps", ""): 50,
        ("trainyard_loss", ""): 1.25,
        ("trainyard_eval_loss", ""): 1.5,
        ("trainyard_learning_rate", ""): 0.001,
        ("trainyard_grad_norm", ""): 0.5,
        ("trainyard_world_size", ""): 2,
        ("trainyard_evaluation", "eval_loss"): 1.5,
        ("trainyard_evaluation", "eval_accuracy"): 0.25,
    }


def test_what_a_status_leaves_out_keeps_its_value() -> None:
    report = Report("mine", 1)
    report.update(status(current_step=20, total_steps=50, loss=1.25, eval_loss=2), world_size=2)
    report.update(status(percent=42, current_step=21), world_size=2)
    found = parsed(report)
    assert (found.step, found.total_steps, found.loss, found.eval_loss) == (21, 50, 1.25, 2)
    # The last one of transformers has no step any more.
    report.update(status(percent=100, eta=0, train_loss=1.2), world_size=2)
    assert (parsed(report).step, parsed(report).eta_seconds) == (50, 0)


def test_a_script_without_a_step_count_reports_a_percentage() -> None:
    report = Report("mine", 1)
    report.update({"trainerStatus": {"progressPercentage": 33}}, world_size=0)
    assert (parsed(report).step, parsed(report).progress_percent) == (None, 33)


@pytest.mark.parametrize("name", ["num_input_tokens_seen", "num_tokens"])
def test_tokens_become_a_rate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    clock = iter([10.0, 15.0, 16.0, 20.0])
    monkeypatch.setattr("trainyard_agent.report.time.monotonic", lambda: next(clock))
    report = Report("mine", 2)
    # After a resume the count begins where the earlier attempt ended: no rate of the first one.
    for tokens, rate in [(50_000, None), (51_000, 200.0), (51_000, 200.0), (52_000, 200.0)]:
        report.update(status(**{name: tokens}), world_size=1)
        assert parsed(report).tokens_per_second == rate


@pytest.mark.parametrize("body", [None, [], 7, "x", {}, {"trainerStatus": 3}])
def test_an_invalid_status_is_refused(body: Any) -> None:
    report = Report("mine", 1)
    with pytest.raises(ValueError, match="trainerStatus is missing"):
        report.update(body, world_size=1)
    assert report.document() is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "x", None, True, [1], {}])
def test_only_finite_numbers_are_kept(value: Any) -> None:
    report = Report("mine", 1)
    listed = [{"name": "loss", "value": value}, {"name": "current_step", "value": value}]
    report.update({"trainerStatus": {"progressPercentage": value, "metrics": listed}}, 1)
    found = parsed(report)
    assert (found.loss, found.step, found.progress_percent) == (None, None, None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_LISTED = st.lists(st.fixed_dictionaries({"name": _JSON, "value": _JSON}))


@settings(max_examples=50)
@given(st.dictionaries(st.text(), _JSON), _LISTED | _JSON, _JSON, _JSON)
def test_any_posted_status_leaves_the_report_small_and_valid(
    more: dict[str, Any], listed: Any, percent: Any, eta: Any
) -> None:
    report = Report('a "run"\\', 1)
    known = {"metrics": listed, "progressPercentage": percent, "estimatedRemainingSeconds": eta}
    report.update({"trainerStatus": {**more, **known}}, world_size=1)
    found = parsed(report)
    assert all(math.isfinite(value) for value in found.evaluation.values())
    samples(report)
    assert len(found.model_dump_json()) < 64_000


def test_the_number_of_metrics_is_bounded() -> None:
    report = Report("mine", 1)
    for start in range(0, 5000, 50):
        names = {f"eval_{start + i}": i for i in range(50)}
        report.update(status(**names), world_size=1)
    assert len(parsed(report).evaluation) <= agent_report.MAX_EVALUATION


def test_names_are_those_of_the_api() -> None:
    """The agent runs in images without pydantic, so it can't import them."""
    known = {metric.name for metric in vars(metrics).values() if isinstance(metric, metrics.Metric)}
    assert {*agent_report.SERIES.values(), agent_report.EVALUATION} <= known
    described = {metric.name: (metric.kind, metric.help) for metric in metrics.ALL}
    assert {name: described[name] for name in exposition.SERIES} == exposition.SERIES
    assert metrics.EVALUATION.labels[1].at_most == agent_report.MAX_EXPORTED
    document = {**dict.fromkeys(agent_report.SERIES), "progressPercent": None}
    fields = {field.alias for field in ProgressReport.model_fields.values()}
    assert set(document) - agent_report.ONLY_METRICS <= fields
