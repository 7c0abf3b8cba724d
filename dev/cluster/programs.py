"""The cluster's programs, built from their Go modules once and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .commands import UserError
from .preflight import go_program
from .settings import BUILD, KUBERNETES, Settings
from .ui import Report

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

# A build from nothing, in minutes times cores: 452 s were measured on two cores.
CORE_MINUTES = 15.0


def folder(settings: Settings) -> Path:
    """Where this version's programs are, or will be."""
    return settings.cache / "bin" / _stamp()


def ready(settings: Settings) -> bool:
    """Whether nothing has to be built."""
    return folder(settings).is_dir()


def announcement(settings: Settings) -> str:
    """What is about to be built, and how long that takes here; empty when nothing is."""
    if ready(settings):
        return ""
    minutes = CORE_MINUTES / (len(os.sched_getaffinity(0)) or 1)
    return (
        f"Kubernetes {KUBERNETES} is built from source once, into {folder(settings)}.\n"
        f"This takes about {minutes:.0f} minutes on an idle machine with as many CPU cores as this "
        "one; later starts take less than a minute."
    )


def build(settings: Settings, report: Report) -> Path:
    """Build what the cache lacks; the folder appears only when every program is in it."""
    target = folder(settings)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        total = _count(report)
        _compile(work, total, report)
        work.chmod(0o755)
        with contextlib.suppress(OSError):  # another build was first, with the same result
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in target.parent.iterdir():
        if old != target and not old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _count(report: Report) -> int:
    """Fetch the modules; the number of packages that have to be compiled."""
    fetched = 0
    stale = 0
    for line in _go("list", "-deps", "-f", "{{if .Stale}}stale {{.ImportPath}}{{end}}"):
        if line.startswith("go: downloading"):
            fetched += 1
            report(f"fetching module {fetched}: {line.split()[2]}")
        stale += line.startswith("stale ")
    return stale


def _compile(target: Path, total: int, report: Report) -> None:
    for number, package in enumerate(_go("build", "-v", "-o", f"{target}/"), start=1):
        if number < total:
            report(f"compiling package {number} of {total}, {package}", number / total)
        else:
            report("linking the programs", 1.0)


def _go(*arguments: str) -> Iterator[str]:
    """Run go for all programs; every line it prints that has a known form.

    Raises UserError with its last other line when it fails.
    """
    flags = ("-trimpath", "-buildvcs=false", "-ldflags", _link_flags())
    env = {**os.environ, "CGO_ENABLED": "0", "GOGC": "400", "GOFLAGS": "", "GOWORK": "off"}
    last = ""
    with subprocess.Popen(
        [go_program() or "go", arguments[0], *flags, *arguments[1:], *_PACKAGES],
        cwd=BUILD,
        env=env,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        for line in child.stdout or ():
            text = line.strip()
            if text.startswith(("go: downloading", "stale ")) or (text and " " not in text):
                yield text
            elif text:
                last = text
    if child.returncode != 0:
        reason = last or f"exit status {child.returncode}"
        raise UserError(f"building Kubernetes failed: {reason}")


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
