"""Fetches the dashboard's charting library from npm into its static files, and checks it.

python -m dev.vendor            the version of manifest.json again; it must be the same package
python -m dev.vendor VERSION    another version
"""

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[1] / "dashboard/trainyard_dashboard/static/vendor"
MANIFEST = "manifest.json"
PACKAGE = "uplot"
FILES = {
    "uplot.min.js": "dist/uPlot.iife.min.js",
    "uplot.min.css": "dist/uPlot.min.css",
    "uplot.LICENSE": "LICENSE",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        known = json.loads((VENDOR / MANIFEST).read_text())
        version = sys.argv[1] if len(sys.argv) > 1 else known["version"]
        archive = download(version, Path(directory))
        manifest = unpack(archive, VENDOR, known)
    print(f"{PACKAGE} {manifest['version']} ({manifest['license']}) is in {VENDOR}")


def download(version: str, directory: Path) -> Path:
    """The package's archive, fetched by npm."""
    command = [
        "npm",
        "pack",
        f"{PACKAGE}@{version}",
        "--silent",
        "--pack-destination",
        str(directory),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = directory.glob("*.tgz")
    return archive


def unpack(archive: Path, target: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Write the package's files, and a manifest of them.

    Args:
        archive: the package.
        target: the directory to write to.
        known: the manifest so far; the same version must have the same integrity.
    """
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    with tarfile.open(archive) as package:
        content = {name: _read(package, path) for name, path in FILES.items()}
        about = json.loads(_read(package, "package.json"))
    manifest = {
        "package": about["name"],
        "version": about["version"],
        "license": about["license"],
        "integrity": f"sha512-{digest}",
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }
    if known.get("version") == about["version"] and known["integrity"] != manifest["integrity"]:
        raise SystemExit(
            f"{PACKAGE} {about['version']} is not the package that {MANIFEST} names: its integrity"
            f" is {manifest['integrity']}, not {known['integrity']}"
        )
    for name, data in content.items():
        (target / name).write_bytes(data)
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _read(package: tarfile.TarFile, path: str) -> bytes:
    file = package.extractfile(f"package/{path}")
    assert file is not None, path
    return file.read()


if __name__ == "__main__":
    main()
