"""The metrics of a run: which steps are productive, and no series before it has a value."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trainyard_api import metrics
from trainyard_api.job import TrainerJob
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.history import HISTORY_FILE
from trainyard_trainer.reporting.http_report import ReportServer
from trainyard_trainer.reporting.reporter import RunReporter

Value = Callable[[metrics.Metric], float | None]


@pytest.fixture
def server(tmp_path: Path) -> ReportServer:
    job = TrainerJob(run="r", recipe="gpt", run_dir=str(tmp_path), report_port=0, attempt=2)
    return ReportServer(job, world_size=1)


@pytest.fixture
def value(server: ReportServer) -> Callable[[metrics.Metric], float | None]:
    def get(metric: metrics.Metric) -> float | None:
        """The value of a metric; None while it has none."""
        families = text_string_to_metric_families(server.metrics.text().decode())
        samples = [sample for family in families for sample in family.samples]
        return next((s.value for s in samples if s.name == metric.name), None)

    return get


@pytest.fixture
def reporter(server: ReportServer, tmp_path: Path) -> RunReporter:
    """Of an attempt that resumes from step 4, though the one before had logged step 6."""
    lines = [{"step": step, "loss": 1.0} for step in range(1, 7)]
    (tmp_path / HISTORY_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = TrainerJob(run="r", recipe="gpt", run_dir=str(tmp_path), report_port=0, attempt=2)
    reporter = RunReporter(2, Console(enabled=False), server)
    reporter.open_history(job, TrainConfig(), ["host"], 4, {})
    return reporter


def test_steps_done_a_second_time_are_not_productive(reporter: RunReporter, value: Value) -> None:
    for step in range(5, 9):
        reporter.step_timed(step, 2.0)
    assert value(metrics.PRODUCTIVE_SECONDS) == 4.0
    name = f"{metrics.STEP_SECONDS}_sum"
    assert value(metrics.Metric(name, "counter", "")) == 8.0


def test_a_metric_without_a_value_has_no_series(reporter: RunReporter, value: Value) -> None:
    for metric in (metrics.LOSS, metrics.EVAL_LOSS, metrics.CHECKPOINT_TIME, metrics.STEP):
        assert value(metric) is None
    reporter.step_done(5)
    reporter.newest_checkpoint(4, datetime(2026, 1, 1, tzinfo=UTC))
    assert value(metrics.STEP) == 5
    assert value(metrics.CHECKPOINT_STEP) == 4
    assert value(metrics.CHECKPOINT_TIME) == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert value(metrics.ATTEMPT) == 2


def test_the_time_of_an_evaluation_is_counted(reporter: RunReporter, value: Value) -> None:
    assert value(metrics.EVALUATION_SECONDS) == 0
    reporter.update(phase="evaluating")
    reporter.evaluated(5, {"eval_loss": 1.5}, None)
    seconds = value(metrics.EVALUATION_SECONDS)
    assert seconds
    assert 0 < seconds < 60
    assert value(metrics.EVAL_LOSS) == 1.5
