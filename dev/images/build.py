"""Build the images: base, torch, and on top of them operator, trainer and serving.

base and torch are named by what they are made of, so they are built once for each set of locked
requirements; a change of our own code only rebuilds the last, thin layer of each image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .builder import REPO, Builder, ImageError, run, uv

IMAGES = ("operator", "trainer", "serving")
_LOWER = {"operator": "base", "trainer": "torch", "serving": "torch"}
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
    """Build what is missing; the names of the images, in the order built."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _context(Path(folder)) as context:
        secrets = _secrets(Path(folder))
        lower: dict[str, str] = {}
        start = job.builder.base(job.base)
        _step("base", began)
        lower["base"] = _lower(job, "base", f"BASE={start}", start, context, secrets)
        _step("base with an empty environment", began)
        if any(_LOWER[name] == "torch" for name in job.names):
            below = lower["base"]
            lower["torch"] = _lower(job, "torch", f"FROM_IMAGE={below}", below, context, secrets)
            _step("torch", began)
        wheel = _wheel(context)
        for name in job.names:
            arguments = [f"FROM_IMAGE={lower[_LOWER[name]]}", f"WHEEL={wheel}"]
            _build(job, name, job.image(name), arguments, context, secrets)
            _step(job.image(name), began)
    return job.images()


def _lower(
    job: Job, name: str, argument: str, below: str, context: Path, secrets: list[str]
) -> str:
    """A lower image, named by everything that is in it; built only if it is not there."""
    digest = hashlib.sha256(below.encode())
    for path in (f"{name}.Containerfile", "install.sh", "requirements/uv.txt"):
        digest.update((context / "images" / path).read_bytes())
    lock = context / "images" / "requirements" / f"{name}.txt"
    if lock.exists():
        digest.update(lock.read_bytes())
    image = f"{_LOCAL}/{name}:{digest.hexdigest()[:12]}"
    if not job.builder.has(image):
        _build(job, name, image, [argument], context, secrets)
    return image


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
    """A build context with only what the images need: the recipes, and later the wheel."""
    context = folder / "context"
    target = context / "images" / "requirements"
    target.mkdir(parents=True)
    source = REPO / "images"
    for path in [*source.glob("*.Containerfile"), source / "install.sh"]:
        shutil.copyfile(path, context / "images" / path.name)
    for path in (source / "requirements").glob("*.txt"):
        shutil.copyfile(path, target / path.name)
    for path in context.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield context


def _wheel(context: Path) -> str:
    """Build the project's wheel into the context; its path there."""
    run([uv(), "build", "--quiet", "--wheel", "--out-dir", str(context / "wheel"), str(REPO)])
    found = sorted((context / "wheel").glob("*.whl"))
    if not found:
        raise ImageError("uv built no wheel")
    return f"wheel/{found[0].name}"


def _secrets(folder: Path) -> list[str]:
    """What this machine needs to reach its package index; seen by the build, never in an image."""
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
    """What pip is configured with on this machine, if there is pip and it is."""
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        return ""
    done = subprocess.run([pip, "config", "get", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _step(what: str, began: float) -> None:
    print(f"  {time.monotonic() - began:6.1f} s  {what}", flush=True)
