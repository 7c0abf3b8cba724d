"""charts/serving: replicas, disruptions, and what Prometheus is asked."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard_api import metrics
from trainyard_serving.metrics import Metrics

from .conftest import Render, Rendered
from .serving_values import CPU, GENERATE, MONITOR, PROTECTED, QUEUE, SGLANG


def query(rendered: Rendered) -> str:
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    text: str = trigger["metadata"]["query"]
    return text


def test_replicas_are_the_autoscalers_or_the_charts_never_both(render: Render) -> None:
    assert render("serving", *GENERATE, "replicas=3").one("Deployment")["spec"]["replicas"] == 3
    for kind in (CPU, QUEUE):
        rendered = render("serving", *GENERATE, *kind, "replicas=3")
        assert "replicas" not in rendered.one("Deployment")["spec"]


def test_cpu_scales_the_deployment(render: Render) -> None:
    rendered = render("serving", *GENERATE, *CPU, "autoscaling.cpu.targetUtilization=50")
    spec = rendered.one("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": rendered.one("Deployment")["metadata"]["name"],
    }
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 4)
    (metric,) = spec["metrics"]
    target = {"type": "Utilization", "averageUtilization": 50}
    assert metric["resource"] == {"name": "cpu", "target": target}
    assert not rendered.all("ScaledObject")


def test_waiting_requests_scale_the_deployment(render: Render) -> None:
    rendered = render("serving", *SGLANG, *QUEUE, "autoscaling.queue.waitingPerReplica=8")
    spec = rendered.one("ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == rendered.one("Deployment")["metadata"]["name"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert trigger["metadata"]["threshold"] == "8"
    assert trigger["metadata"]["serverAddress"] == "http://prometheus:9090"
    assert not rendered.all("HorizontalPodAutoscaler")


def test_the_query_asks_for_a_metric_that_is_exported(render: Render) -> None:
    asked = set(re.findall(r"trainyard_\w+", query(render("serving", *GENERATE, *QUEUE))))
    assert asked == {metrics.SERVING_QUEUE.name}
    exported = Metrics().exposition().decode()
    assert all(f"# TYPE {name} gauge" in exported for name in asked)


def test_the_query_sums_what_waits_in_this_releases_pods(render: Render, tmp_path: Path) -> None:
    """Executed by Prometheus itself, on series of this release and of others."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (Debian: apt-get install prometheus)")
    name = metrics.SERVING_QUEUE.name
    series = {
        ("ml", "trainyard-serving-6d4cf56db6-x7k2p"): 3,
        ("ml", "trainyard-serving-6d4cf56db6-9bqwz"): 4,
        ("ml", "trainyard-serving-other-6d4cf56db6-9bqwz"): 100,  # another release
        ("prod", "trainyard-serving-6d4cf56db6-x7k2p"): 100,  # another namespace
    }
    rule = {"record": "waiting", "expr": query(render("serving", *GENERATE, *QUEUE))}
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "keda", "rules": [rule]}]})
    )
    test = {
        "interval": "15s",
        "input_series": [
            {"series": f'{name}{{namespace="{space}",pod="{pod}"}}', "values": f"{depth}x20"}
            for (space, pod), depth in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": "waiting",
                "eval_time": "4m",
                "exp_samples": [{"labels": "waiting", "value": 7}],
            }
        ],
    }
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "test.yaml").write_text(json.dumps(document))
    result = subprocess.run(
        [promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("values", "budgets"),
    [
        (("replicas=1",), 0),
        (("replicas=2",), 1),
        ((*CPU, "replicas=5"), 0),  # as few as minReplicas, 1
        ((*CPU, "autoscaling.minReplicas=2"), 1),
    ],
)
def test_a_disruption_budget_comes_with_a_second_pod(
    render: Render, values: tuple[str, ...], budgets: int
) -> None:
    """With one pod it would keep a node from ever being drained."""
    assert len(render("serving", *GENERATE, *values).all("PodDisruptionBudget")) == budgets


def test_the_budget_is_about_our_pods(render: Render) -> None:
    rendered = render("serving", *GENERATE, "replicas=2", "podDisruptionBudget.maxUnavailable=50%")
    spec = rendered.one("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == "50%"
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def scraped(rendered: Rendered) -> bool:
    template: dict[str, Any] = rendered.one("Deployment")["spec"]["template"]["metadata"]
    return "prometheus.io/scrape" in template["annotations"]


def test_pods_are_scraped_in_one_way_only(render: Render) -> None:
    assert scraped(render("serving", *GENERATE))
    assert not scraped(render("serving", *GENERATE, "metrics.scrape=false"))
    assert not scraped(render("serving", *GENERATE, *MONITOR))
    assert not scraped(render("serving", *GENERATE, *PROTECTED)), "it would be answered 401"


def test_the_monitor_finds_the_service_and_its_port(render: Render) -> None:
    rendered = render("serving", *GENERATE, *MONITOR)
    monitor, service = rendered.one("ServiceMonitor"), rendered.one("Service")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "30s")
    assert "authorization" not in endpoint


def test_the_monitor_sends_the_key_where_metrics_ask_for_it(render: Render) -> None:
    rendered = render("serving", *GENERATE, *PROTECTED, *MONITOR)
    (endpoint,) = rendered.one("ServiceMonitor")["spec"]["endpoints"]
    name = rendered.one("Secret")["metadata"]["name"]
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": name, "key": "api-key"},
    }
