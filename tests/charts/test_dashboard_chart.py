"""charts/operator with dashboard.enabled: read-only rights, an API key, a restricted pod."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from trainyard_dashboard.costs import PriceList
from trainyard_dashboard.settings import DashboardSettings, read_settings

from .conftest import Refusal, Render, Rendered
from .test_operator_chart import rules

ON = ("dashboard.enabled=true", "dashboard.apiKey.value=secret")
NAME = "trainyard-operator-dashboard"


def pod(rendered: Rendered) -> dict[str, Any]:
    spec: dict[str, Any] = rendered.one("Deployment", "dashboard")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rendered], DashboardSettings]:
    """Reads the settings as the program does, from the container's arguments and environment."""

    def read(rendered: Rendered) -> DashboardSettings:
        (container,) = pod(rendered)["containers"]
        for variable in container["env"]:
            monkeypatch.setenv(variable["name"], variable.get("value", "secret"))
        return read_settings(container["args"])

    return read


def test_without_dashboard_enabled_there_are_no_dashboard_objects(render: Render) -> None:
    names = [item["metadata"]["name"] for item in render("operator").manifests]
    assert not [name for name in names if "dashboard" in name]


def test_the_dashboard_has_read_only_rights(render: Render) -> None:
    rendered = render("operator", *ON)
    role = rendered.one("ClusterRole", "dashboard")
    runs = {
        ("trainyard.dev", resource, verb)
        for resource in ("trainingruns", "scalingstudies")
        for verb in ("get", "list", "watch")
    }
    assert rules(role) == runs | {("", "events", "list")}
    binding = rendered.one("ClusterRoleBinding", "dashboard")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [item["name"] for item in binding["subjects"]] == [NAME]
    assert pod(rendered)["serviceAccountName"] == NAME
    fewest = render("operator", *ON, "dashboard.readEvents=false").one("ClusterRole", "dashboard")
    assert rules(fewest) == runs
    most = render("operator", *ON, "dashboard.readLogs=true").one("ClusterRole", "dashboard")
    assert rules(most) == runs | {("", "events", "list"), ("", "pods/log", "get")}


def test_with_watch_namespace_it_reads_only_that_one(
    render: Render, settings: Callable[[Rendered], DashboardSettings]
) -> None:
    rendered = render("operator", *ON, "watchNamespace=team")
    assert not rendered.all("ClusterRole", "dashboard")
    assert rendered.one("Role", "dashboard")["metadata"]["namespace"] == "team"
    assert rendered.one("RoleBinding", "dashboard")["metadata"]["namespace"] == "team"
    assert settings(rendered).namespace == "team"


def test_the_program_accepts_the_charts_arguments(
    render: Render, settings: Callable[[Rendered], DashboardSettings]
) -> None:
    rendered = render(
        "operator",
        *ON,
        "dashboard.prometheusUrl=http://prometheus.monitoring:9090",
        "dashboard.demoUrl=https://bard.default",
        'dashboard.prices:={"currency": "EUR", "prices": '
        '[{"name": "a", "kind": "cloud", "perHour": 1}]}',
    )
    found = settings(rendered)
    assert (found.cluster, found.host, found.port) == (True, "0.0.0.0", 8050)
    assert found.prometheus_url == "http://prometheus.monitoring:9090"
    assert found.demo_url == "https://bard.default"
    assert found.prices == "/etc/trainyard/prices.yaml"
    (port,) = pod(rendered)["containers"][0]["ports"]
    assert port["containerPort"] == found.port
    written = yaml.safe_load(rendered.one("ConfigMap", "dashboard")["data"]["prices.yaml"])
    assert PriceList.model_validate(written).currency == "EUR"
    egress = rendered.one("NetworkPolicy", "dashboard")["spec"]["egress"]
    assert [port["port"] for port in egress[1]["ports"]] == [443, 6443, 9090, 443]


def test_the_key_comes_from_a_secret(render: Render, refusal: Refusal) -> None:
    def secret_of(rendered: Rendered) -> dict[str, str]:
        (env,) = [item for item in pod(rendered)["containers"][0]["env"] if "valueFrom" in item]
        assert env["name"] == "TRAINYARD_SERVING_API_KEY"
        found: dict[str, str] = env["valueFrom"]["secretKeyRef"]
        return found

    ours = render("operator", *ON)
    assert ours.one("Secret", "dashboard")["stringData"] == {"api-key": "secret"}
    assert secret_of(ours) == {"name": NAME, "key": "api-key"}
    theirs = render("operator", "dashboard.enabled=true", "dashboard.apiKey.existingSecret=mine")
    assert not theirs.all("Secret", "dashboard")
    assert secret_of(theirs)["name"] == "mine"
    assert "set value or existingSecret" in refusal("operator", "dashboard.enabled=true")
    both = (*ON, "dashboard.apiKey.existingSecret=mine")
    assert "leave one of them empty" in refusal("operator", *both)
    no_key = refusal("operator", "dashboard.enabled=true", "dashboard.apiKey.value=\\,")
    assert "don't meet the specifications of the schema" in no_key


def test_its_pod_meets_the_restricted_pod_security_standard(render: Render) -> None:
    spec = pod(render("operator", *ON))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


@pytest.mark.parametrize("kind", ["Service", "NetworkPolicy", "Deployment"])
def test_selectors_match_only_the_dashboards_pods(render: Render, kind: str) -> None:
    rendered = render("operator", *ON)
    labels = rendered.one("Deployment", "dashboard")["spec"]["template"]["metadata"]["labels"]
    operators = rendered.one("Deployment", "operator")["spec"]["template"]["metadata"]["labels"]
    spec = rendered.one(kind, "dashboard")["spec"]
    selector = spec.get("podSelector", spec.get("selector"))
    selector = selector.get("matchLabels", selector)
    assert selector.items() <= labels.items()
    assert not selector.items() <= operators.items()
    for other in rendered.all("Service", "operator"):
        assert not other["spec"]["selector"].items() <= labels.items()
