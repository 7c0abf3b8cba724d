"""Every manifest of every shape is one that Kubernetes takes."""

import pytest

from .conftest import Render
from .kubernetes_schemas import CUSTOM, VERSIONS, violations
from .operator_values import MONITORED
from .serving_values import SHAPES

OPERATOR = {
    "default": (),
    "replicas": ("replicas=2",),
    "one-namespace": ("watchNamespace=team", "rbac.aggregate=false"),
    "monitored": MONITORED,
}
CASES = [("operator", *item) for item in OPERATOR.items()]
CASES += [("serving", *item) for item in SHAPES.items()]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("chart", "shape", "values"), CASES, ids=[f"{c}-{s}" for c, s, _ in CASES])
def test_kubernetes_takes_the_manifests(
    render: Render, chart: str, shape: str, values: tuple[str, ...], version: str
) -> None:
    manifests = render(chart, *values).manifests
    ours = [item for item in manifests if item["kind"] not in CUSTOM]
    assert len(ours) >= 4
    assert [line for item in ours for line in violations(item, version)] == []


def test_the_schemas_refuse_what_kubernetes_would() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}
    ports = [{"port": 80, "targetport": "http"}]
    (line,) = violations(service | {"spec": {"ports": ports}}, VERSIONS[-1])
    assert "targetport" in line
    (line,) = violations(service | {"spec": {"type": 7}}, VERSIONS[-1])
    assert line.startswith("Service spec.type: 7")


def test_every_kind_the_chart_can_make_is_among_the_shapes(render: Render) -> None:
    kinds = {
        item["kind"] for values in SHAPES.values() for item in render("serving", *values).manifests
    }
    assert kinds == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "ScaledObject",
        "Secret",
        "Service",
        "ServiceMonitor",
    }
