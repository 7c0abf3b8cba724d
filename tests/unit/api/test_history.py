"""What of metrics.jsonl is an evaluation: one rule for charts, run pages and `describe`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard.home import write_run
from trainyard_api.history import evaluation_metrics
from trainyard_cli.inspect import describe
from trainyard_dashboard.metrics_log import MetricsLog
from trainyard_local.store import RunDir


@pytest.mark.parametrize(
    ("record", "metrics"),
    [
        ({"step": 9, "time": 2.0, "attempt": 1, "accuracy": 0.5}, {"accuracy": 0.5}),
        ({"step": 9, "eval_loss": 1.5, "accuracy": 1}, {"eval_loss": 1.5, "accuracy": 1}),
        ({"step": 9, "loss": 2.0, "grad_norm": 1.0, "eval_f1": 0.5}, {"eval_f1": 0.5}),
        ({"step": 9, "eval_loss": float("nan"), "eval_big": 10**400, "eval_on": True}, {}),
        ({"step": 9, "loss": 2.0, "samples_per_second": 3.0}, {}),
        ({"step": 9, "sample": "text"}, {}),
        ({"step": 9, "event": "ended", "train_runtime": 3.0}, {}),
    ],
)
def test_charts_run_pages_and_describe_have_one_rule(
    tmp_path: Path, record: dict[str, Any], metrics: dict[str, float]
) -> None:
    assert evaluation_metrics(record) == metrics
    path = write_run(tmp_path, "bard", points=1)
    path.write_text(json.dumps(record) + "\n")
    found = MetricsLog(path).read("bard", ())
    assert found.evaluation == list(metrics)
    assert [one.metrics for one in found.evaluations] == ([metrics] if metrics else [])
    said = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    lines = describe(RunDir("bard", tmp_path)).splitlines()
    shown = [line for line in lines if line.startswith("Evaluation:")]
    assert shown == ([f"{'Evaluation:':<12} step 9: {said}"] if metrics else [])


def test_the_rule_needs_no_pydantic() -> None:
    code = "import sys, trainyard_api.history; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
