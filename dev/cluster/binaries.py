"""The cluster's programs, built from their Go modules once and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import ClusterError
from .preflight import go_program
from .settings import BUILD, KUBERNETES, Settings
from .ui import Tell

_PACKAGES = (
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "k8s.io/kubernetes/cmd/kubelet",
    "helm.sh/helm/v4/cmd/helm",
    "./cri",
    "./dns",
    "./etcd",
    "./pause",
    "./registry",
    "./volumes",
)
_MODULES_BUILT = 3400  # packages compiled from nothing: only for the progress display


def folder(settings: Settings) -> Path:
    """Where this version's programs are, or will be."""
    return settings.cache / "bin" / _stamp()


def ready(settings: Settings) -> bool:
    """Whether nothing has to be built."""
    return folder(settings).is_dir()


def build(settings: Settings, tell: Tell) -> Path:
    """Build what the cache lacks; the folder appears only when every program is in it."""
    target = folder(settings)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        _go_build(work, tell)
        work.chmod(0o755)
        with contextlib.suppress(OSError):  # another build was first: theirs is the same
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in target.parent.iterdir():
        if old != target and not old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _go_build(target: Path, tell: Tell) -> None:
    command = [
        go_program() or "go",
        *("build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", _link_flags()),
        *("-o", f"{target}/", *_PACKAGES),
    ]
    env = {**os.environ, "CGO_ENABLED": "0", "GOGC": "400", "GOFLAGS": "", "GOWORK": "off"}
    said: list[str] = []
    compiled = 0
    with subprocess.Popen(
        command,
        cwd=BUILD,
        env=env,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:
        for line in child.stderr or ():
            text = line.strip()
            if text.startswith("go: downloading"):
                tell(f"fetching {text.split()[2]}")
            elif " " not in text:
                compiled += 1
                tell(f"compiled {compiled} of at most {_MODULES_BUILT} packages, at {text}")
            else:
                said.append(text)
    if child.returncode != 0:
        why = said[-1] if said else f"exit status {child.returncode}"
        raise ClusterError(f"building Kubernetes failed: {why}")


def _link_flags() -> str:
    """Without a stamp the components call themselves v0.0.0, and clients refuse them."""
    major, minor, _ = KUBERNETES.lstrip("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    stamps = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in values.items()
    ]
    return " ".join(["-s", "-w", *stamps])


def _stamp() -> str:
    """Names a set of programs by everything they are built from."""
    digest = hashlib.sha256(_link_flags().encode())
    for path in sorted([*BUILD.glob("go.*"), *BUILD.glob("*/*.go")]):
        digest.update(path.relative_to(BUILD).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update("\0".join(_PACKAGES).encode())
    return f"{KUBERNETES}-{digest.hexdigest()[:12]}"
