"""A newer version of the operator: this one's sources with a patch, and an upgrade to it and back.

Nothing has been released that could be the other version. What a newer one may bring is added here
instead: a field and a value in the spec, fields and values in the status, a reason, a condition.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.kube import REPO, TIMEOUT, Namespace, run, wait_until
from trainyard_api import __version__

NEWER = "99.0.0"
PACKAGES = ("api", "storage", "lifecycle", "study", "operator")  # all that the operator imports
MOUNT = "/newer"
DEPLOYMENT = "deployment/trainyard-operator"
CRDS = REPO / "charts" / "operator" / "crds"

HANDLED_BY = """\
    handled_by: str = Field(default="", description="Version of the newest operator.")
"""
# (file, its text now, its text in the newer version)
PATCH = (
    ("api/trainyard_api/__init__.py", f'"{__version__}"', f'"{NEWER}"'),
    # The spec: a field, and a value.
    (
        "api/trainyard_api/spec.py",
        "    max_restarts: int = Field(",
        "    cool_down_seconds: int | None = Field(default=None, ge=0, description='A pause.')\n"
        "    max_restarts: int = Field(",
    ),
    ("api/trainyard_api/spec.py", '["Delete", "Retain"]', '["Delete", "Retain", "Archive"]'),
    # The status: fields at its top and in its lists, and a condition.
    (
        "api/trainyard_api/status.py",
        "    created: bool = Field(",
        f"{HANDLED_BY}    created: bool = Field(",
    ),
    (
        "api/trainyard_api/status.py",
        "    counted: bool | None = Field(",
        '    zone: str = Field(default="", description="Zone of the pods.")\n'
        "    counted: bool | None = Field(",
    ),
    (
        "lifecycle/trainyard_lifecycle/transitions.py",
        "            number=number,\n",
        '            number=number,\n            zone="a",\n',
    ),
    ("api/trainyard_api/status.py", '"Unsupported",\n]', '"Unsupported",\n    "Audited",\n]'),
    (
        "lifecycle/trainyard_lifecycle/reconcile.py",
        "    status = run.status.model_copy(deep=True)\n",
        "    status = run.status.model_copy(deep=True)\n"
        f'    status.handled_by = "{NEWER}"\n'
        '    set_condition(status, "Audited", True, "Audited", "", now)\n',
    ),
    # The end of an attempt: an outcome, and a reason.
    (
        "lifecycle/trainyard_lifecycle/transitions.py",
        '            "outcome": outcome,\n            "reason": reason,\n',
        '            "outcome": "Disrupted" if reason == "PodDeleted" else outcome,\n'
        '            "reason": "PodDrained" if reason == "PodDeleted" else reason,\n',
    ),
    # A study's status.
    (
        "api/trainyard_api/study_status.py",
        "    fingerprint: str = Field(",
        f"{HANDLED_BY}    fingerprint: str = Field(",
    ),
    (
        "study/trainyard_study/reconcile.py",
        "    status = study.status.model_copy(deep=True)\n",
        f'    status = study.status.model_copy(deep=True)\n    status.handled_by = "{NEWER}"\n',
    ),
)


def write_newer(folder: Path) -> None:
    """The newer version's packages and definitions, in `folder`."""
    for package in PACKAGES:
        name = f"trainyard_{package}"
        shutil.copytree(
            REPO / package / name,
            folder / package / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for file, old, new in PATCH:
        path = folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} does not have this once: {old}"
        path.write_text(text.replace(old, new))
    (folder / "crds").mkdir()
    paths = os.pathsep.join(str(folder / package) for package in PACKAGES)
    subprocess.run(
        [sys.executable, "-m", "dev.crd", str(folder / "crds")],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    )
    assert "coolDownSeconds" in (folder / "crds" / "trainingruns.trainyard.dev.yaml").read_text()


class Versions:
    """The cluster's operator, upgraded and downgraded as docs/operate/operations.md says."""

    def __init__(self, operator: Namespace, folder: Path) -> None:
        self.operator = operator
        self.folder = folder
        self._upgraded = False
        write_newer(folder)
        for package in PACKAGES:
            files = f"--from-file={folder / package / f'trainyard_{package}'}"
            operator.kubectl("delete", "configmap", f"newer-{package}", "--ignore-not-found")
            operator.kubectl("create", "configmap", f"newer-{package}", files)

    def upgrade(self) -> None:
        """First the definitions, then the operator."""
        apply_crds(self.folder / "crds")
        self.operator.kubectl("patch", DEPLOYMENT, "--patch", json.dumps(_overlay()))
        self._upgraded = True
        self._wait_for_the_lead()

    def downgrade(self) -> None:
        """The operator only: its objects need the newer definitions."""
        self.operator.kubectl("rollout", "undo", DEPLOYMENT)
        self._upgraded = False
        self._wait_for_the_lead()

    def restore(self) -> None:
        """As if nothing had been."""
        if self._upgraded:
            self.downgrade()
        apply_crds(CRDS)
        for package in PACKAGES:
            self.operator.kubectl("delete", "configmap", f"newer-{package}")

    def _wait_for_the_lead(self) -> None:
        self.operator.kubectl("rollout", "status", DEPLOYMENT, TIMEOUT)

        def leads() -> bool:
            pods = self.operator.items("pods")
            lease = self.operator.get("lease", "trainyard-operator") or {"spec": {}}
            names = [pod["metadata"]["name"] for pod in pods]
            return names == [lease["spec"].get("holderIdentity")]

        wait_until("the new operator leads, and the old one is gone", leads)


def apply_crds(folder: Path) -> None:
    run(
        *("kubectl", "apply", "--server-side", "--force-conflicts", "--field-manager=helm"),
        *("-f", str(folder)),
    )


def _overlay() -> dict[str, object]:
    """Lays the newer packages over those of the operator's image."""
    mounts = [
        {"name": f"newer-{package}", "mountPath": f"{MOUNT}/trainyard_{package}"}
        for package in PACKAGES
    ]
    volumes = [
        {"name": f"newer-{package}", "configMap": {"name": f"newer-{package}"}}
        for package in PACKAGES
    ]
    container = {
        "name": "operator",
        "env": [{"name": "PYTHONPATH", "value": MOUNT}],
        "volumeMounts": mounts,
    }
    return {"spec": {"template": {"spec": {"containers": [container], "volumes": volumes}}}}
