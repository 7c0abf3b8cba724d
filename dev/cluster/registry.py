"""The image registry on this machine's loopback interface, and pushing images to it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import socket
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from .commands import DIRECT, PATIENCE, TRANSFER, UserError, direct_env, run, until
from .preflight import BUILDERS
from .processes import Processes
from .settings import PAUSE_VERSION, Settings
from .ui import Report

NAME = "registry"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def ensure(settings: Settings, processes: Processes, programs: Path, report: Report) -> None:
    """Start the registry, and push the pause image, which holds each pod's namespaces."""
    config = settings.state / "registry.json"
    text = json.dumps(
        {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(settings.cache / "registry")},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"127.0.0.1:{settings.registry_port}", "secret": "local"},
        },
        indent=1,
    )
    config.write_text(text + "\n")
    command: list[str | Path] = [programs / "registry", "serve", config]
    if not processes.current(NAME, command, text):
        processes.stop([NAME])
        _refuse_taken_port(settings.registry_port)
        processes.ensure(NAME, command, text)

    def answers() -> bool:
        processes.must_live(NAME)
        return _has(settings, "/v2/")

    until(answers, lambda: f"the registry does not answer: {processes.log_tail(NAME)}", report)
    _push_pause(settings, programs / "pause")


def target_name(image: str, registry: str) -> str:
    """The name under which the cluster knows the image."""
    if image.startswith(f"{registry}/"):
        return image
    repository = image.removeprefix("localhost/")
    host, _, rest = repository.partition("/")
    if rest and ("." in host or ":" in host or host == "localhost"):
        repository = rest
    if "/" not in repository:
        repository = f"trainyard/{repository}"
    return f"{registry}/{repository}"


def push(image: str, target: str, tool: str = "") -> None:
    """Push the image from the tool's store, by default from the first store that has it."""
    for name in (tool,) if tool else BUILDERS:
        if shutil.which(name) and _in_store(name, image):
            break
    else:
        where = tool or "docker, podman or buildah"
        raise UserError(f"no image {image} in {where}: make images builds ours")
    if name == "docker":
        if image != target:
            run(["docker", "tag", image, target])
        run(["docker", "push", "--quiet", target], timeout=TRANSFER)
        return
    # zstd compresses 6 GB of libraries in half the time of gzip, and unpacks faster, too.
    command = [name, "push", "--quiet", "--tls-verify=false", "--compression-format=zstd"]
    if name == "buildah":  # podman before 4.6 has no such option
        command.append("--compression-level=1")
    run([*command, image, f"docker://{target}"], env=direct_env(), timeout=TRANSFER)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port}, where the image registry listens, is in use: "
                "set TRAINYARD_REGISTRY_PORT to another"
            ) from None


def _push_pause(settings: Settings, program: Path) -> None:
    """Push the pause image: one layer with one program in it."""
    layer = _layer(program)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    packed = gzip.compress(layer, mtime=0)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _describe("application/vnd.oci.image.config.v1+json", config),
            "layers": [_describe("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        }
    ).encode()
    base = "/v2/trainyard/pause"
    for blob in (packed, config):
        if not _has(settings, f"{base}/blobs/{_digest(blob)}"):
            _upload(settings, f"{base}/blobs/uploads/", blob)
    _call(settings, "PUT", f"{base}/manifests/{PAUSE_VERSION}", manifest, _MANIFEST)


def _layer(program: Path) -> bytes:
    """A tar of the program alone, the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            tar.addfile(entry, content)
    return packed.getvalue()


def _upload(settings: Settings, path: str, blob: bytes) -> None:
    location = _call(settings, "POST", path)["Location"]
    joint = "&" if "?" in location else "?"
    target = f"{location}{joint}digest={_digest(blob)}"
    _call(settings, "PUT", target, blob, "application/octet-stream")


def _describe(kind: str, blob: bytes) -> dict[str, str | int]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _has(settings: Settings, path: str) -> bool:
    try:
        _call(settings, "HEAD" if "blobs" in path else "GET", path)
    except UserError:
        return False
    return True


def _call(
    settings: Settings, method: str, path: str, body: bytes | None = None, kind: str = ""
) -> dict[str, str]:
    """One request to the registry; the answer's headers."""
    base = f"http://127.0.0.1:{settings.registry_port}"
    request = urllib.request.Request(
        path if path.startswith("http") else base + path, data=body, method=method
    )
    if kind:
        request.add_header("Content-Type", kind)
    try:
        with DIRECT.open(request, timeout=PATIENCE) as answer:
            return dict(answer.headers)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"registry {method} {path}: {error}") from None


def _in_store(tool: str, image: str) -> bool:
    words = ["inspect", "--type", "image"] if tool != "docker" else ["image", "inspect"]
    return run([tool, *words, image], check=False).returncode == 0
