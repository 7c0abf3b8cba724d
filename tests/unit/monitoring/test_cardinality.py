"""Labels stay within their bounds with any number of ranks, classes, runs and names."""

from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trainyard_api import metrics
from trainyard_api.job import TrainerJob
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_serving.metrics import Metrics
from trainyard_trainer.reporting.metrics import TrainerMetrics

MANY = 7000


def values(text: bytes, metric: metrics.Metric, label: str) -> set[str]:
    """The values of a label; all labels of its metric must be within their bounds."""
    for family in text_string_to_metric_families(text.decode()):
        if family.name == metric.name.removesuffix("_total"):
            for each in metric.labels:
                assert len({sample.labels[each] for sample in family.samples}) <= each.at_most
            return {sample.labels[label] for sample in family.samples}
    raise AssertionError(f"{metric} is not exported")


def trainer() -> TrainerMetrics:
    return TrainerMetrics(TrainerJob(run="r", recipe="gpt", run_dir="/x", report_port=0))


def test_only_the_slowest_ranks_are_exported() -> None:
    subject = trainer()
    subject.set_rank_seconds([float(rank) for rank in range(MANY)])
    exported = values(subject.text(), metrics.RANK_STEP_SECONDS, "rank")
    assert exported == {str(rank) for rank in range(MANY - 256, MANY)}
    subject.set_rank_seconds([float(-rank) for rank in range(MANY)])
    exported = values(subject.text(), metrics.RANK_STEP_SECONDS, "rank")
    assert exported == {str(rank) for rank in range(256)}, "ranks of the previous report remain"


def test_only_the_first_evaluation_metrics_are_exported() -> None:
    subject = trainer()
    for score in (0.1, 0.2):
        subject.set_evaluation({f"m{number}": score for number in range(100)})
    assert len(values(subject.text(), metrics.EVALUATION, "metric")) == 32
    assert b'trainyard_evaluation{metric="m0",run="r"} 0.2' in subject.text()


def test_classes_past_the_limit_are_counted_as_other() -> None:
    subject = Metrics()
    for number in range(MANY):
        subject.predicted(f"class {number}")
    subject.predicted("class 0")
    exported = values(subject.exposition(), metrics.PREDICTIONS, "label")
    assert len(exported) == 101
    assert {"class 0", "other"} <= exported
    counted = f'trainyard_serving_predictions_total{{label="other"}} {MANY - 100:.1f}'
    assert counted in subject.exposition().decode()


def test_unfinished_runs_are_exported_before_finished_ones() -> None:
    subject = OperatorMetrics()
    ended: dict[str, Any] = {"phase": "Failed", "completionTime": "2999-01-01T00:00:00Z"}
    bodies: dict[Any, Any] = {
        ObjectKey(f"n{number}", f"r{number}"): {
            "metadata": {"namespace": f"n{number}", "name": f"r{number}"},
            "spec": {"queue": {"name": f"q{number}"}},
            "status": {} if number == MANY - 1 else ended,
        }
        for number in range(MANY)
    }
    subject.runs.replace_all(bodies)
    text = generate_latest(subject.registry)
    exported = values(text, metrics.RUN_PHASE, "run")
    assert len(exported) == 5000
    assert f"r{MANY - 1}" in exported
    assert f'trainyard_operator_runs{{phase="Failed"}} {MANY - 1:.1f}' in text.decode()


def test_failure_reasons_are_within_their_bound() -> None:
    from trainyard_lifecycle.diagnosis import REASONS

    assert len(REASONS) <= metrics.RESTARTS.labels[0].at_most
