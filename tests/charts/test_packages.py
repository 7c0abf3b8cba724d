"""Packages of a release: they name the images that the same release has pushed."""

import subprocess
from pathlib import Path

import pytest
import yaml

import trainyard_api
from dev.charts import package

from .conftest import find_helm

DASHBOARD = ("dashboard.enabled=true", "dashboard.apiKey.value=k")
REGISTRY = "registry.example.com/team/trainyard"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Chart -> its package."""
    helm = find_helm()
    if helm is None:
        pytest.skip("helm is not installed")
    paths = package(REGISTRY, tmp_path_factory.mktemp("packages"), helm)
    return dict(zip(("operator", "serving"), paths, strict=True))


@pytest.mark.parametrize(
    ("chart", "values", "images"),
    [
        (
            "operator",
            ("dashboard.enabled=true", "dashboard.apiKey.value=k"),
            {"operator", "serving"},
        ),
        ("serving", ("run=r",), ["serving"]),
    ],
)
def test_a_package_names_the_images_of_its_registry(
    packages: dict[str, Path], chart: str, values: tuple[str, ...], images: list[str]
) -> None:
    flags = [word for value in values for word in ("--set", value)]
    command = [find_helm() or "helm", "template", "r", str(packages[chart]), *flags]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    manifests = [item for item in yaml.safe_load_all(text) if item]
    pods = [item["spec"]["template"] for item in manifests if item["kind"] == "Deployment"]
    found = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    assert found == {f"{REGISTRY}/{image}:{trainyard_api.__version__}" for image in images}
    if chart == "operator":
        assert f"{REGISTRY}/trainer:{trainyard_api.__version__}" in text
