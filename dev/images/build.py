"""Build the images: the agent; base, torch, and on top of them operator, trainer and serving.

base and torch are named by what they are made of, so they are built once for each set of locked
requirements; a change of our own code only rebuilds the last, thin layer of each image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.commands import UserError
from dev.cluster.ui import Steps

from .builder import REPO, Builder, run, uv

IMAGES = ("agent", "operator", "trainer", "serving")
_LOWER = {"agent": "busybox", "operator": "base", "trainer": "torch", "serving": "torch"}
_LOCAL = "localhost/trainyard"
_INDEX_SETTINGS = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
)
_AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Job:
    """What to build, and with what."""

    builder: Builder
    prefix: str
    tag: str
    base: str = ""
    names: tuple[str, ...] = IMAGES

    def image(self, name: str) -> str:
        """The full name of one of the images."""
        return f"{self.prefix}/{name}:{self.tag}"

    def images(self) -> list[str]:
        """The full names of all images to build."""
        return [self.image(name) for name in self.names]


def build(job: Job) -> list[str]:
    """Build the images; returns their names in the order built."""
    needed = {_LOWER[name] for name in job.names}
    with_base, with_torch = needed != {"busybox"}, "torch" in needed
    steps = Steps(2 * with_base + with_torch + 2 * ("agent" in job.names) + len(job.names))
    with tempfile.TemporaryDirectory() as folder, _context(Path(folder)) as context:
        secrets = build_secrets(Path(folder))
        lower: dict[str, str] = {}
        if "busybox" in needed:
            with steps.step("shell for the agent") as report:
                lower["busybox"] = job.builder.busybox(report)
        if with_base:
            with steps.step("base image") as report:
                start = job.builder.base(report, job.base)
            with steps.step("virtual environment"):
                lower["base"] = _lower(job, "base", f"BASE={start}", start, context, secrets)
        if with_torch:
            below = lower["base"]
            with steps.step("PyTorch") as report:
                report("6 GB with its CUDA libraries, which takes some minutes the first time")
                lower["torch"] = _lower(
                    job, "torch", f"FROM_IMAGE={below}", below, context, secrets
                )
        if "agent" in job.names:
            with steps.step("py-spy for the agent"):
                _py_spy(context)
        wheel = _wheel(context)
        for name in job.names:
            arguments = [f"FROM_IMAGE={lower[_LOWER[name]]}", f"WHEEL={wheel}"]
            with steps.step(job.image(name)):
                _build(job, name, job.image(name), arguments, context, secrets)
    print(f"Built with {job.builder.tool}: {steps.summary()}.", flush=True)
    return job.images()


def _lower(
    job: Job, name: str, argument: str, below: str, context: Path, secrets: list[str]
) -> str:
    """The name of a lower image, made of a hash of its content; it is built if it is missing."""
    digest = hashlib.sha256(below.encode())
    for path in (f"{name}.Containerfile", "install.sh", "requirements/uv.txt"):
        text = (context / "images" / path).read_text()
        digest.update(_code(text).encode())
    lock = context / "images" / "requirements" / f"{name}.txt"
    if lock.exists():
        digest.update(_code(lock.read_text()).encode())
    image = f"{_LOCAL}/{name}:{digest.hexdigest()[:12]}"
    if not job.builder.has(image):
        _build(job, name, image, [argument], context, secrets)
    return image


def _code(text: str) -> str:
    """A file without its comment lines, which change no image."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _build(
    job: Job, name: str, image: str, arguments: list[str], context: Path, secrets: list[str]
) -> None:
    options = [word for argument in arguments for word in ("--build-arg", argument)]
    # Not in the recipe: buildah's layer cache would keep the label of an earlier tag.
    options += ["--label", f"org.opencontainers.image.version={job.tag}"] if name in IMAGES else []
    recipe = context / "images" / f"{name}.Containerfile"
    job.builder.build(recipe, context, image, [*options, *secrets])


@contextmanager
def _context(folder: Path) -> Iterator[Path]:
    """A build context of only the files that the images need: the recipes, and later the wheel."""
    context = folder / "context"
    target = context / "images" / "requirements"
    target.mkdir(parents=True)
    source = REPO / "images"
    for path in [*source.glob("*.Containerfile"), source / "install.sh"]:
        shutil.copyfile(path, context / "images" / path.name)
    for path in (source / "requirements").glob("*.txt"):
        shutil.copyfile(path, target / path.name)
    shutil.copytree(REPO / "agent", context / "agent", ignore=shutil.ignore_patterns("*cache*"))
    for path in context.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield context


def _py_spy(context: Path) -> None:
    """Put py-spy's program beside the agent: it is static, so it runs in any image."""
    target = context / "py-spy"
    lock = REPO / "images" / "requirements" / "agent.txt"
    options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
    run([uv(), "pip", "install", "--python", sys.executable, *options, "-r", str(lock)])
    program = context / "agent" / "py-spy"
    shutil.copyfile(target / "bin" / "py-spy", program)
    program.chmod(0o755)
    shutil.rmtree(target)


def _wheel(context: Path) -> str:
    """Build the project's wheel into the context; its path there."""
    run([uv(), "build", "--quiet", "--wheel", "--out-dir", str(context / "wheel"), str(REPO)])
    found = sorted((context / "wheel").glob("*.whl"))
    if not found:
        raise UserError("uv built no wheel")
    return f"wheel/{found[0].name}"


def build_secrets(folder: Path) -> list[str]:
    """Build secrets: what this machine needs to reach its package index; never in an image."""
    words: list[str] = []
    for name in _AUTHORITIES:
        path = os.environ.get(name, "")
        if path and Path(path).is_file():
            words += ["--secret", f"id=ca,src={path}"]
            break
    settings = {name: os.environ[name] for name in _INDEX_SETTINGS if os.environ.get(name)}
    address = _pip_setting("global.index-url")
    if address:
        settings.setdefault("PIP_INDEX_URL", address)
    if "PIP_INDEX_URL" in settings:
        settings.setdefault("UV_DEFAULT_INDEX", settings["PIP_INDEX_URL"])
    if settings:
        path_out = folder / "index"
        path_out.touch(mode=0o600)
        path_out.write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))
        words += ["--secret", f"id=index,src={path_out}"]
    return words


def _pip_setting(name: str) -> str:
    """A setting of this machine's pip; empty without one."""
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        return ""
    done = subprocess.run([pip, "config", "get", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
