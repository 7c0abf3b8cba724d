"""What holds for every chart: the restricted pod security standard, strict values, lint."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import trainyard_api

from .conftest import CHARTS, Refusal, Render

NEEDED = {"operator": (), "serving": ("run=shakespeare",)}
charts = pytest.mark.parametrize("chart", sorted(NEEDED))


@charts
def test_helm_lint_finds_nothing(
    helm: Callable[..., subprocess.CompletedProcess[str]], chart: str
) -> None:
    flags = [flag for value in NEEDED[chart] for flag in ("--set", value)]
    result = helm("lint", "--strict", str(CHARTS / chart), *flags)
    assert result.returncode == 0, result.stdout + result.stderr


@charts
def test_every_pod_keeps_to_the_restricted_standard(render: Render, chart: str) -> None:
    """kubernetes.io/docs/concepts/security/pod-security-standards, and read-only roots."""
    specs = render(chart, *NEEDED[chart]).pod_specs()
    assert len(specs) == 2  # the Deployment and the test
    for spec in specs:
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["runAsGroup"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim"}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(
    ("chart", "values"),
    [
        ("serving", NEEDED["serving"]),
        ("operator", ("dashboard.enabled=true", "dashboard.apiKey.value=secret")),
    ],
)
def test_probes_tolerate_a_busy_node(render: Render, chart: str, values: tuple[str, ...]) -> None:
    """Who answers late is not started over: that would cost the node still more."""
    for deployment in render(chart, *values).all("Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        startup, alive = container["startupProbe"], container["livenessProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
        assert alive["periodSeconds"] * alive["failureThreshold"] >= 60
        assert alive["timeoutSeconds"] >= 30


@charts
def test_no_pod_takes_settings_from_the_names_of_services(render: Render, chart: str) -> None:
    for spec in render(chart, *NEEDED[chart]).pod_specs():
        assert spec["enableServiceLinks"] is False


@charts
def test_images_default_to_the_charts_version(render: Render, chart: str) -> None:
    images = {
        container["image"]
        for spec in render(chart, *NEEDED[chart]).pod_specs()
        for container in [*spec.get("initContainers", []), *spec["containers"]]
    }
    assert images == {f"trainyard/{chart}:{trainyard_api.__version__}"}


@charts
def test_image_settings_reach_every_container(render: Render, chart: str) -> None:
    values = ("image.repository=localhost:5000/x/y", "image.tag=t1", "image.pullPolicy=Always")
    secret = "imagePullSecrets[0].name=mine"
    for spec in render(chart, *NEEDED[chart], *values, secret).pod_specs():
        assert spec["imagePullSecrets"] == [{"name": "mine"}]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["image"] == "localhost:5000/x/y:t1"
            assert container["imagePullPolicy"] == "Always"


@charts
def test_scheduling_settings_reach_the_pods(render: Render, chart: str) -> None:
    values = (
        "nodeSelector.pool=a",
        "tolerations[0].key=gpu",
        "affinity.nodeAffinity.x=y",
        "priorityClassName=high",
        "podLabels.team=red",
        "podAnnotations.note=n",
    )
    rendered = render(chart, *NEEDED[chart], *values)
    template = rendered.one("Deployment")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"pool": "a"}
    assert template["spec"]["tolerations"] == [{"key": "gpu"}]
    assert template["spec"]["affinity"] == {"nodeAffinity": {"x": "y"}}
    assert template["spec"]["priorityClassName"] == "high"
    assert template["metadata"]["labels"]["team"] == "red"
    assert template["metadata"]["annotations"]["note"] == "n"


@charts
@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("replica=2", "replica"),
        ("replicas=-1", "replicas"),
        ("replicas=two", "replicas"),
        ("image.registry=x", "registry"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.repository=a b", "repository"),
        ("resources.limit.cpu=1", "limit"),
        ("resources.limits.memory=4GB", "memory"),
        ("metrics.scrape=maybe", "scrape"),
        ("affinity.podaffinity.x=1", "podaffinity"),
    ],
)
def test_helm_refuses_a_wrong_value_and_names_it(
    refusal: Refusal, chart: str, value: str, named: str
) -> None:
    message = refusal(chart, *NEEDED[chart], value)
    assert "don't meet the specifications of the schema" in message
    assert named in message


@charts
def test_the_schema_knows_every_default_and_nothing_else(chart: str) -> None:
    """Otherwise a setting could be documented and refused, or accepted and unread."""
    import yaml

    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text())

    definitions = schema.get("definitions", {})

    def compare(value: dict[str, Any], schema: dict[str, Any]) -> None:
        if name := schema.get("$ref"):
            schema = definitions[name.removeprefix("#/definitions/")]
        if schema.get("additionalProperties") is not False:
            return
        assert schema["properties"].keys() - {"global", "claims"} >= value.keys()
        for key in value:
            if isinstance(value[key], dict):
                compare(value[key], schema["properties"][key])

    compare(values, schema)
    assert schema["properties"].keys() - {"global"} == values.keys()


@charts
@pytest.mark.parametrize("release", ["true", "123", "a" * 53])
def test_any_release_name_gives_valid_names_and_labels(
    render: Render, chart: str, release: str
) -> None:
    for manifest in render(chart, *NEEDED[chart], release=release).manifests:
        name = manifest["metadata"]["name"]
        assert isinstance(name, str)
        assert len(name) <= 68  # the longest is FULLNAME-test or -lease
        assert all(isinstance(value, str) for value in manifest["metadata"]["labels"].values())
    service = render(chart, *NEEDED[chart], release=release).one("Service")
    assert len(service["metadata"]["name"]) <= 63


@charts
def test_the_chart_has_the_products_version(
    helm: Callable[..., subprocess.CompletedProcess[str]], chart: str
) -> None:
    import yaml

    meta = yaml.safe_load(helm("show", "chart", str(CHARTS / chart)).stdout)
    assert meta["appVersion"] == meta["version"] == trainyard_api.__version__


@charts
def test_the_programs_in_pods_compile(chart: str) -> None:
    programs = sorted((CHARTS / chart / "files").glob("*.py"))
    assert programs
    for program in programs:
        compile(program.read_text(), program.name, "exec")
