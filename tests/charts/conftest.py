"""Charts rendered by the real helm, which these tests need."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import SECONDS

CHARTS = Path(__file__).parents[2] / "charts"
Manifest = dict[str, Any]


def find_helm() -> str | None:
    """helm on PATH, or the one that `make cluster` built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainyard" / "bin"
    built = sorted(cache.glob("**/helm"), key=lambda path: path.stat().st_mtime)
    return shutil.which("helm") or (str(built[-1]) if built else None)


def set_flags(values: Iterable[str]) -> list[str]:
    """`key=value` for helm's --set, `key:=JSON` for its --set-json."""
    flags: list[str] = []
    for value in values:
        key, json, text = value.partition(":=")
        flags += ["--set-json", f"{key}={text}"] if json and "=" not in key else ["--set", value]
    return flags


@dataclass(frozen=True)
class Rendered:
    """What `helm template` made of a chart."""

    manifests: list[Manifest]

    def one(self, kind: str, suffix: str = "") -> Manifest:
        """The only manifest of `kind` whose name ends in `suffix`."""
        (found,) = self.all(kind, suffix)
        return found

    def all(self, kind: str, suffix: str = "") -> list[Manifest]:
        return [
            manifest
            for manifest in self.manifests
            if manifest["kind"] == kind and manifest["metadata"]["name"].endswith(suffix)
        ]

    def pod_specs(self) -> list[Manifest]:
        """Of Deployments and of test pods."""
        deployments = [item["spec"]["template"]["spec"] for item in self.all("Deployment")]
        return deployments + [item["spec"] for item in self.all("Pod")]

    def pod(self) -> Manifest:
        """The pod of the only Deployment."""
        spec: Manifest = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    def container(self, name: str) -> Manifest:
        """A container, init container or sidecar of the only Deployment."""
        spec = self.pod()
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        (found,) = [container for container in containers if container["name"] == name]
        assert isinstance(found, dict)
        return found


Render = Callable[..., Rendered]
Refusal = Callable[..., str]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm, found on PATH or built by `make cluster`."""
    program = find_helm()
    if program is None:
        pytest.skip("helm is neither on PATH nor built (`make cluster` builds it)")

    env = os.environ | {"GOGC": "off"}  # it ends before its garbage matters

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [program, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """`render(chart, "key=value", "key:=JSON", ..., release="trainyard")`."""

    @cache  # many tests look at the same manifests
    def run(chart: str, *values: str, release: str = "trainyard", files: str = "") -> Rendered:
        flags = [*set_flags(values), *(["--values", files] if files else [])]
        result = helm("template", release, str(CHARTS / chart), "--namespace", "ml", *flags)
        assert result.returncode == 0, result.stderr
        return Rendered([item for item in yaml.safe_load_all(result.stdout) if item])

    return run


@pytest.fixture(scope="session")
def refusal(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Refusal:
    """helm's message when it refuses values."""

    def run(chart: str, *values: str) -> str:
        result = helm("template", "trainyard", str(CHARTS / chart), *set_flags(values))
        assert result.returncode != 0, "helm took these values"
        return result.stderr

    return run
