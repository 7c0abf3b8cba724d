"""The dashboard's distant sources: a Prometheus and a cluster, well and unwell."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from tests.patience import until
from trainyard_api import metrics as names
from trainyard_dashboard.board import Board
from trainyard_dashboard.cluster_source import ClusterSource
from trainyard_dashboard.local_source import LocalSource
from trainyard_dashboard.model import RunRow, SourceError
from trainyard_dashboard.prometheus_source import MAX_BYTES, PrometheusSource

from .answers import Answer, answering
from .dashboard_home import study, write_run

RUNS = "/apis/trainyard.dev/v1alpha1/trainingruns"
STUDIES = "/apis/trainyard.dev/v1alpha1/scalingstudies"
ROW = RunRow(
    id="cluster/ml/a",
    name="a",
    namespace="ml",
    source="cluster",
    start_time=datetime.fromtimestamp(1000, UTC),
)


def result(*series: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"status": "success", "data": {"resultType": "matrix", "result": list(series)}}


def over_time(labels: dict[str, str], *values: str) -> dict[str, Any]:
    return {"metric": labels, "values": [[1000.0 + i, value] for i, value in enumerate(values)]}


def test_curves_come_by_step_ranks_apart_and_gpus_by_time() -> None:
    asked: list[str] = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        asked.append(query["query"])
        if "trainyard_step{" in query["query"]:
            return result(over_time({}, "10", "20", "30"))
        if "rank_step_seconds" in query["query"]:
            return result(over_time({"rank": "0"}, "1", "2"), over_time({"rank": "1"}, "3", "NaN"))
        if "DCGM" in query["query"]:
            return result(over_time({"gpu": "0", "Hostname": "n1"}, "90"))
        return result(over_time({}, "3", "+Inf", "1"))

    with answering(answer) as url:
        found = PrometheusSource(url).history(ROW, ["loss", "rank_step_seconds", "gpu_utilization"])
    loss, rank0, rank1, gpu = found.curves
    assert (loss.x, loss.y, loss.x_is) == ([10, 30], [3, 1], "step")
    assert [(c.part, c.x, c.y) for c in (rank0, rank1)] == [
        ("rank 0", [10, 20], [1, 2]),
        ("rank 1", [10], [3]),
    ]
    assert (gpu.part, gpu.y, gpu.x_is) == ("host n1 GPU 0", [90], "seconds")
    assert 'max (trainyard_loss{run="a",namespace="ml"})' in asked
    assert any('pod=~"a-[0-9]+-[0-9]+",namespace="ml"' in query for query in asked)


def test_prometheus_alone_lists_runs_of_unknown_phase() -> None:
    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        value = {"trainyard_step": "7", "trainyard_loss": "NaN"}.get(
            query["query"].split("(")[-1].split("[")[0]
        )
        series = {"metric": {"namespace": "ml", "run": "a"}, "value": [1, value]}
        return result(series) if value else result()

    with answering(answer) as url:
        (row,), problems = Board([], PrometheusSource(url)).runs()
    assert (row.id, row.step, row.loss, row.phase) == ("prometheus/ml/a", 7, None, None)
    assert problems == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda path, query: (200, b"<html>"), "does not answer as a Prometheus does"),
        (lambda path, query: (503, {}), "does not answer as a Prometheus does"),
        (
            lambda path, query: (200, {"status": "success", "data": None}),
            "does not answer as a Prometheus",
        ),
        (
            lambda path, query: (400, {"status": "error", "error": "bad query"}),
            ": bad query",
        ),
        (
            lambda path, query: result({"metric": {}, "value": "x"}),
            "does not answer as a Prometheus",
        ),
        (lambda path, query: (200, b" " * (MAX_BYTES + 1)), "answers more than 8 MiB"),
    ],
)
def test_a_strange_prometheus_is_one_line(answer: Answer, told: str) -> None:
    with answering(answer) as url:
        rows, problems = Board([], PrometheusSource(url)).runs()
    assert rows == []
    (line,) = problems
    assert line.startswith(f"Prometheus at {url}")
    assert told in line


def test_a_prometheus_that_is_away_costs_its_curves_only(tmp_path: Path) -> None:
    write_run(tmp_path, "a", points=3)
    board = Board([LocalSource(tmp_path)], PrometheusSource("http://127.0.0.1:9"))
    found, (line,) = board.history(["local/default/a"], ["loss", "gpu_utilization"])
    assert [curve.metric for curve in found["local/default/a"].curves] == ["loss"]
    assert "Prometheus at http://127.0.0.1:9 can't be reached" in line


def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> ClusterSource:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return ClusterSource(None, "")


@pytest.mark.system  # the client takes seconds to import
def test_a_clusters_runs_and_studies_come_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> dict[str, Any]:
        status = {"phase": "Running", "step": 5, "newField": 1}
        return {"metadata": {"name": name, "namespace": "ml"}, "status": status}

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == STUDIES:
            one = study()
            one["metadata"] |= {"namespace": "ml", "managedFields": [{"manager": "kubectl"}]}
            return 200, {"items": [one, {"metadata": {"name": "odd"}}], "metadata": {}}
        assert path == RUNS
        if "continue" not in query:
            return 200, {"items": [run("a"), {"metadata": {}}], "metadata": {"continue": "more"}}
        return 200, {"items": [run("b")], "metadata": {}}

    with answering(answer) as url:
        source = cluster(tmp_path, monkeypatch, url)
        rows, (problem,) = source.runs()
        ((name, found),), (odd,) = source.studies()
    assert [(row.id, row.phase, row.step) for row in rows] == [
        ("cluster/ml/a", "Running", 5),
        ("cluster/ml/b", "Running", 5),
    ]
    assert "a TrainingRun of the cluster can't be read" in problem
    assert (name, found.name) == ("cluster/ml/sizes", "sizes")
    assert odd.startswith("ScalingStudy odd can't be read: ")


@pytest.mark.system
@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "has no trainingruns: install charts/operator"),
        (403, "refuses to list trainingruns: 403 Forbidden"),
        (500, "refuses to list trainingruns: 500"),
    ],
)
def test_a_cluster_that_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, told: str
) -> None:
    with answering(lambda path, query: (status, {})) as url:
        source = cluster(tmp_path, monkeypatch, url)
        with pytest.raises(SourceError) as raised:
            source.runs()
    assert told in str(raised.value)


@pytest.mark.system
def test_a_cluster_that_is_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=r"^the cluster can't be reached: .*refused$"):
        cluster(tmp_path, monkeypatch, "http://127.0.0.1:9").runs()


@contextmanager
def prometheus(tmp_path: Path, target: str, port: int) -> Iterator[str]:
    """A real Prometheus that scrapes `target` every second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no Prometheus on this machine (apt-get install prometheus)")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: runs\n"
        f"  static_configs: [{{targets: ['{target}'], labels: {{namespace: ml}}}}]\n"
    )
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.system
def test_a_real_prometheus_has_runs_and_curves(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    gauges = {
        metric.name: Gauge(metric.name, "help", metric.labels, registry=registry)
        for metric in (names.STEP, names.TOTAL_STEPS, names.LOSS, names.RANK_STEP_SECONDS)
    }
    step = 0

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        nonlocal step
        step += 1
        gauges["trainyard_step"].labels("a").set(step)
        gauges["trainyard_total_steps"].labels("a").set(1000)
        gauges["trainyard_loss"].labels("a").set(3 / step)
        for rank in "01":
            gauges["trainyard_rank_step_seconds"].labels("a", rank).set(0.1)
        return 200, generate_latest(registry)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        answering(answer) as target,
        prometheus(tmp_path, target.removeprefix("http://"), port) as url,
    ):
        board = Board([], PrometheusSource(url))
        until(lambda: any(row.step and row.step > 3 for row in board.runs()[0]))
        found, problems = board.history(["prometheus/ml/a"], ["loss", "rank_step_seconds"])
    loss, *ranks = found["prometheus/ml/a"].curves
    assert problems == []
    assert loss.x_is == "step"
    assert len(loss.x) > 2
    assert all(y == pytest.approx(3 / x) for x, y in zip(loss.x, loss.y, strict=True))
    assert [curve.part for curve in ranks] == ["rank 0", "rank 1"]
