"""The remote data sources with their real clients: the Kubernetes API and Prometheus."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from tests.patience import until
from tests.support.canned_http import answering
from tests.support.dashboard.home import study
from trainyard_api import metrics as names
from trainyard_dashboard.catalog import Catalog, DataSourceError
from trainyard_dashboard.kubernetes_api import KubernetesAPI
from trainyard_dashboard.prometheus import Prometheus

RUNS = "/apis/trainyard.dev/v1alpha1/trainingruns"
STUDIES = "/apis/trainyard.dev/v1alpha1/scalingstudies"


def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> KubernetesAPI:
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
    return KubernetesAPI(None, "")


def test_runs_and_studies_are_listed_page_by_page(
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


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "has no trainingruns: install charts/operator"),
        (403, "refuses to list trainingruns: 403 Forbidden"),
        (500, "refuses to list trainingruns: 500"),
    ],
)
def test_a_refused_list_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    with answering(lambda path, query: (status, {})) as url:
        source = cluster(tmp_path, monkeypatch, url)
        with pytest.raises(DataSourceError) as raised:
            source.runs()
    assert message in str(raised.value)


def test_an_unreachable_cluster_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataSourceError, match=r"^the cluster can't be reached: .*refused$"):
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


def test_a_real_prometheus_provides_runs_and_curves(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    gauges = {
        metric.name: Gauge(metric.name, "help", metric.labels, registry=registry)
        for metric in (names.STEP, names.TOTAL_STEPS, names.LOSS, names.RANK_STEP_SECONDS)
    }
    usage = {
        metric.name: Gauge(metric.name, "help", metric.labels, registry=registry)
        for metric in (names.AGENT_MEMORY_BYTES, names.AGENT_GPU_UTILIZATION)
    }
    counters = {
        metric.name: Counter(metric.name, "help", metric.labels, registry=registry)
        for metric in (names.AGENT_CPU_SECONDS, names.AGENT_RECEIVED_BYTES, names.AGENT_SENT_BYTES)
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
            usage["trainyard_agent_rank_memory_bytes"].labels("a", rank).set(1 << 30)
            counters["trainyard_agent_rank_cpu_seconds_total"].labels("a", rank).inc(0.5)
        usage["trainyard_agent_rank_gpu_utilization_ratio"].labels("a", "1").set(0.9)
        counters["trainyard_agent_network_receive_bytes_total"].labels("a").inc(1000)
        counters["trainyard_agent_network_transmit_bytes_total"].labels("a").inc(2000)
        return 200, generate_latest(registry)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        answering(answer) as target,
        prometheus(tmp_path, target.removeprefix("http://"), port) as url,
    ):
        catalog = Catalog([], Prometheus(url))
        until(lambda: any(row.step and row.step > 3 for row in catalog.runs()[0]))
        found, problems = catalog.history(["prometheus/ml/a"], ["loss", "rank_step_seconds"])
        usages, no_problems = catalog.usage(["prometheus/ml/a"])
    loss, *ranks = found["prometheus/ml/a"].curves
    assert problems == []
    assert loss.x_is == "step"
    assert len(loss.x) > 2
    assert all(y == pytest.approx(3 / x) for x, y in zip(loss.x, loss.y, strict=True))
    assert [curve.part for curve in ranks] == ["rank 0", "rank 1"]
    assert no_problems == []
    zero, one = usages["prometheus/ml/a"].ranks
    assert (zero.memory_bytes, zero.gpu_utilization, one.gpu_utilization) == (1 << 30, None, 0.9)
    assert zero.cpu_cores is not None
    assert zero.cpu_cores > 0
    (pod,) = usages["prometheus/ml/a"].pods
    assert pod.received is not None
    assert pod.sent == pytest.approx(2 * pod.received)
