"""The metrics of a run: what counts as productive, and that nothing is told before it is known."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trainyard_api import metrics
from trainyard_api.job import TrainerJob
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.history import HISTORY_FILE, History
from trainyard_trainer.reporting.http_report import Reporter
from trainyard_trainer.reporting.listeners import Listeners


def told(out: Listeners, metric: metrics.Metric) -> float | None:
    """The value of a metric; None while it has none."""
    assert out.reporter
    families = text_string_to_metric_families(out.reporter.metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return next((s.value for s in samples if s.name == metric.name), None)


@pytest.fixture
def out(tmp_path: Path) -> Listeners:
    """Of an attempt that resumes from step 4, though the one before had logged step 6."""
    lines = [{"step": step, "loss": 1.0} for step in range(1, 7)]
    (tmp_path / HISTORY_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = TrainerJob(run="r", recipe="gpt", run_dir=str(tmp_path), report_port=0, attempt=2)
    history = History(tmp_path, "r", 4, 2)
    return Listeners(Console(speaks=False), Reporter(job, world_size=1), history)


def test_steps_done_a_second_time_are_not_productive(out: Listeners) -> None:
    for step in range(5, 9):
        out.timed(step, 2.0)
    assert told(out, metrics.PRODUCTIVE_SECONDS) == 4.0
    name = f"{metrics.STEP_SECONDS}_sum"
    assert told(out, metrics.Metric(name, "counter", "")) == 8.0


def test_what_is_not_known_is_not_told(out: Listeners) -> None:
    for metric in (metrics.LOSS, metrics.EVAL_LOSS, metrics.CHECKPOINT_TIME, metrics.STEP):
        assert told(out, metric) is None
    out.stepped(5)
    out.checkpointed(4, datetime(2026, 1, 1, tzinfo=UTC))
    assert told(out, metrics.STEP) == 5
    assert told(out, metrics.CHECKPOINT_STEP) == 4
    assert told(out, metrics.CHECKPOINT_TIME) == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert told(out, metrics.ATTEMPT) == 2


def test_the_time_of_an_evaluation_is_counted(out: Listeners) -> None:
    assert told(out, metrics.EVALUATION_SECONDS) == 0
    out.report(phase="evaluating")
    out.evaluated(5, {"eval_loss": 1.5}, None, 2)
    seconds = told(out, metrics.EVALUATION_SECONDS)
    assert seconds
    assert 0 < seconds < 60
    assert told(out, metrics.EVAL_LOSS) == 1.5
