"""The Prometheus data source: curves, limits and errors."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.canned_http import Answer, answering
from tests.support.dashboard.home import write_run
from trainyard_dashboard.catalog import Catalog, RunSummary
from trainyard_dashboard.local_files import LocalFiles
from trainyard_dashboard.prometheus import MAX_BYTES, Prometheus

RUN = RunSummary(
    id="cluster/ml/a",
    name="a",
    namespace="ml",
    source="cluster",
    start_time=datetime.fromtimestamp(1000, UTC),
)


def result(*series: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"status": "success", "data": {"resultType": "matrix", "result": list(series)}}


def over_time(name: str, labels: dict[str, str], *values: str) -> dict[str, Any]:
    points = [[1000.0 + i, value] for i, value in enumerate(values)]
    return {"metric": {"__name__": name, **labels}, "values": points}


def test_metrics_are_curves_over_steps_and_gpu_metrics_over_seconds() -> None:
    asked: list[str] = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        asked.append(query["query"])
        if "DCGM" in query["query"]:
            return result(over_time("", {"gpu": "0", "Hostname": "n1"}, "90"))
        return result(
            over_time("trainyard_loss", {}, "3", "+Inf", "1"),
            over_time("trainyard_rank_step_seconds", {"rank": "0"}, "1", "2"),
            over_time("trainyard_rank_step_seconds", {"rank": "1"}, "3", "NaN"),
            over_time("trainyard_step", {}, "10", "20", "30"),
            over_time("trainyard_grad_norm", {}, "1", "1", "1"),
        )

    with answering(answer) as url:
        found = Prometheus(url).history(RUN, ["loss", "rank_step_seconds", "gpu_utilization"])
    loss, rank0, rank1, gpu = found.curves
    assert (loss.x, loss.y, loss.x_is) == ([10, 30], [3, 1], "step")
    assert [(c.part, c.x, c.y) for c in (rank0, rank1)] == [
        ("rank 0", [10, 20], [1, 2]),
        ("rank 1", [10], [3]),
    ]
    assert (gpu.part, gpu.y, gpu.x_is) == ("host n1 GPU 0", [90], "seconds")
    assert found.metrics == ["loss", "rank_step_seconds", "grad_norm", "gpu_utilization"]
    assert len(asked) == 2  # one for everything that the run exports, one for its GPUs
    assert 'run="a",namespace="ml"' in asked[0]
    assert 'pod=~"a-[0-9]+-[0-9]+",namespace="ml"' in asked[1]


def test_evaluations_are_points_and_counters_go_on_after_a_restart() -> None:
    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        accuracy = {"metric": "accuracy"}
        return result(
            over_time("trainyard_step", {}, "10", "20", "30", "20", "30", "40"),
            over_time("trainyard_loss", {}, "5", "4", "3", "4", "3", "2"),
            over_time("trainyard_evaluation", accuracy, ".1", ".1", ".2", ".2", ".2", ".3"),
            over_time("trainyard_evaluation", {"metric": "eval_loss"}, "1"),
            over_time("trainyard_tokens_total", {}, "100", "200", "300", "0", "100", "200"),
        )

    with answering(answer) as url:
        found = Prometheus(url).history(RUN, ["loss", "accuracy", "axis:tokens", "axis:seconds"])
    curves = {curve.metric: (curve.x, curve.y) for curve in found.curves}
    assert curves["loss"] == ([10, 20, 30, 40], [5, 4, 3, 2])
    assert curves["accuracy"] == ([10, 20, 40], [0.1, 0.2, 0.3])
    assert curves["axis:tokens"] == ([0, 10, 20, 30, 40], [0, 100, 200, 300, 400])
    assert curves["axis:seconds"] == ([10, 20, 30, 40], [0, 3, 4, 5])
    assert found.evaluation == ["accuracy"]


def test_without_another_data_source_it_lists_runs_of_unknown_phase() -> None:
    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        value = {"trainyard_step": "7", "trainyard_loss": "NaN"}.get(
            query["query"].split("(")[-1].split("[")[0]
        )
        series = {"metric": {"namespace": "ml", "run": "a"}, "value": [1, value]}
        return result(series) if value else result()

    with answering(answer) as url:
        (row,), problems = Catalog([], Prometheus(url)).runs()
    assert (row.id, row.step, row.loss, row.phase) == ("prometheus/ml/a", 7, None, None)
    assert problems == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda path, query: (200, b"<html>"), "does not respond like a Prometheus"),
        (lambda path, query: (503, {}), "does not respond like a Prometheus"),
        (
            lambda path, query: (200, {"status": "success", "data": None}),
            "does not respond like a Prometheus",
        ),
        (
            lambda path, query: (400, {"status": "error", "error": "bad query"}),
            ": bad query",
        ),
        (
            lambda path, query: result({"metric": {}, "value": "x"}),
            "does not respond like a Prometheus",
        ),
        (lambda path, query: (200, b" " * (MAX_BYTES + 1)), "the response is larger than 8 MiB"),
    ],
)
def test_an_invalid_response_is_a_one_line_error(answer: Answer, message: str) -> None:
    with answering(answer) as url:
        rows, problems = Catalog([], Prometheus(url)).runs()
    assert rows == []
    (line,) = problems
    assert line.startswith(f"Prometheus at {url}")
    assert message in line


def test_an_unreachable_prometheus_costs_only_its_own_curves(tmp_path: Path) -> None:
    write_run(tmp_path, "a", points=3)
    catalog = Catalog([LocalFiles(tmp_path)], Prometheus("http://127.0.0.1:9"))
    found, (line,) = catalog.history(["local/default/a"], ["loss", "gpu_utilization"])
    assert [curve.metric for curve in found["local/default/a"].curves] == ["loss"]
    assert "Prometheus at http://127.0.0.1:9 can't be reached" in line
