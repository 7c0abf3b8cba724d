"""Charts rendered by the real helm, which these tests need."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).parents[2] / "charts"
Manifest = dict[str, Any]


def find_helm() -> str | None:
    """helm on PATH, or the one that `make cluster` built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainyard" / "bin"
    built = sorted(cache.glob("**/helm"), key=lambda path: path.stat().st_mtime)
    return shutil.which("helm") or (str(built[-1]) if built else None)


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


Render = Callable[..., Rendered]
Refusal = Callable[..., str]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm, found on PATH or built by `make cluster`."""
    program = find_helm()
    if program is None:
        pytest.skip("helm is neither on PATH nor built (`make cluster` builds it)")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *args], capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """`render(chart, "key=value", ..., release="trainyard")`."""

    @cache  # many tests look at the same manifests
    def run(chart: str, *values: str, release: str = "trainyard", files: str = "") -> Rendered:
        flags = [flag for value in values for flag in ("--set", value)]
        flags += ["--values", files] if files else []
        result = helm("template", release, str(CHARTS / chart), "--namespace", "ml", *flags)
        assert result.returncode == 0, result.stderr
        return Rendered([item for item in yaml.safe_load_all(result.stdout) if item])

    return run


@pytest.fixture(scope="session")
def refusal(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Refusal:
    """helm's message when it refuses values."""

    def run(chart: str, *values: str) -> str:
        flags = [flag for value in values for flag in ("--set", value)]
        result = helm("template", "trainyard", str(CHARTS / chart), *flags)
        assert result.returncode != 0, "helm took these values"
        return result.stderr

    return run
