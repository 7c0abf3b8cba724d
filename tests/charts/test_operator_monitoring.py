"""charts/operator: monitors, rules and dashboards, for Prometheus and Grafana with operators or
without."""

import json
from typing import Any

import pytest
import yaml

from trainyard_api import labels
from trainyard_lifecycle.plan import WorkerKey
from trainyard_operator import manifests

from .conftest import CHARTS, Refusal, Render
from .operator_values import (
    DASHBOARDS,
    MONITORED,
    POD_MONITOR,
    RULE,
    RULES_FILE,
    SERVICE_MONITOR,
)


def test_features_of_other_operators_are_off_by_default(render: Render) -> None:
    kinds = {manifest["kind"] for manifest in render("operator").manifests}
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}


def annotations(rendered: Any) -> dict[str, str]:
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    found: dict[str, str] = metadata.get("annotations", {})
    return found


def test_the_operator_is_scraped_in_one_way_only(render: Render) -> None:
    assert annotations(render("operator"))["prometheus.io/scrape"] == "true"
    assert not annotations(render("operator", "metrics.scrape=false"))
    assert not annotations(render("operator", *SERVICE_MONITOR))
    assert annotations(render("operator", *SERVICE_MONITOR, "podAnnotations.a=b")) == {"a": "b"}


def test_the_service_monitor_finds_the_operator_and_keeps_its_labels(render: Render) -> None:
    rendered = render("operator", *SERVICE_MONITOR)
    monitor, service = rendered.one("ServiceMonitor"), rendered.one("Service")
    assert monitor["metadata"]["labels"]["release"] == "p"
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert selected.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["honorLabels"] is True


@pytest.mark.parametrize(
    ("values", "where"), [((), {"any": True}), (("watchNamespace=t",), {"matchNames": ["t"]})]
)
def test_the_pod_monitor_finds_rank_0(render: Render, values: tuple[str, ...], where: Any) -> None:
    from tests.support.lifecycle.builders import make_run

    monitor = render("operator", *POD_MONITOR, *values).one("PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == where
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (keep,) = endpoint["relabelings"]

    def scraped(node: int, agent: str = "", **spec: Any) -> bool:
        images = manifests.Images("t", agent)
        pod = manifests.pod(make_run(**spec), WorkerKey(1, node), 2, images)
        selected = monitor["spec"]["selector"]["matchLabels"].items()
        (container,) = pod["spec"]["containers"]
        ports = [port["name"] for port in container["ports"]]
        labels = {
            f"__meta_kubernetes_pod_annotation_{key.translate(str.maketrans('./-', '___'))}": value
            for key, value in pod["metadata"]["annotations"].items()
        }
        (source,) = keep["sourceLabels"]
        return bool(
            selected <= pod["metadata"]["labels"].items()
            and endpoint["port"] in ports
            and labels.get(source) == keep["regex"]
        )

    assert labels.NODE in monitor["spec"]["selector"]["matchLabels"]
    assert scraped(0)
    assert not scraped(1), "its rank serves nothing"
    assert scraped(0, "a", command=["train.py"]), "the agent serves what it reports"
    assert not scraped(0, command=["train.py"]), "what it serves, if anything, isn't ours"


def test_the_rules_have_one_source(render: Render) -> None:
    rendered = render("operator", *RULE, *RULES_FILE)
    file = yaml.safe_load((CHARTS / "operator" / "rules" / "trainyard.yaml").read_text())
    rule = rendered.one("PrometheusRule")
    assert rule["spec"] == file
    assert rule["metadata"]["labels"]["release"] == "p"
    (text,) = rendered.one("ConfigMap", "-rules")["data"].values()
    assert yaml.safe_load(text) == file
    assert "{{ $labels.run }}" in text, "templates are Prometheus', not Helm's"


def test_every_dashboard_is_a_config_map_that_grafana_finds(render: Render) -> None:
    folder = CHARTS / "operator" / "dashboards"
    rendered = render("operator", *DASHBOARDS, "metrics.dashboards.namespace=grafana")
    shipped = {}
    for item in rendered.all("ConfigMap"):
        assert item["metadata"]["namespace"] == "grafana"
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "Trainyard"}
        ((name, text),) = item["data"].items()
        shipped[name] = json.loads(text)
    assert shipped == {
        f"trainyard-{file.name}": json.loads(file.read_text()) for file in folder.glob("*.json")
    }
    assert len(shipped) == 4


@pytest.mark.parametrize("release", ["true", "a" * 53])
def test_names_are_valid_and_differ(render: Render, release: str) -> None:
    rendered = render("operator", *MONITORED, release=release)
    names = [(item["kind"], item["metadata"]["name"]) for item in rendered.manifests]
    assert len(set(names)) == len(names)
    assert all(isinstance(name, str) and len(name) <= 68 for _, name in names)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.serviceMonitor.label.a=b", "label"),
        ("metrics.dashboards.namespace=No!", "namespace"),
        ("metrics.prometheusRule.enabled=maybe", "enabled"),
    ],
)
def test_helm_refuses_a_wrong_value(refusal: Refusal, value: str, named: str) -> None:
    assert named in refusal("operator", value)
