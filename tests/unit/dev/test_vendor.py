"""The dashboard's charting library is the package that its manifest names."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from dev.vendor import FILES, MANIFEST, VENDOR, unpack


def test_the_files_are_those_of_the_manifest() -> None:
    manifest = json.loads((VENDOR / MANIFEST).read_text())
    found = {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in FILES}
    assert manifest["files"] == found
    assert {path.name for path in VENDOR.iterdir()} == {*FILES, MANIFEST, "README.md"}
    about = (VENDOR / "README.md").read_text()
    assert f"uPlot {manifest['version']} ({manifest['license']})" in about
    assert f"v{manifest['version']}" in (VENDOR / "uplot.min.js").read_text()[:100]


def package(path: Path, **about: str) -> Path:
    """An archive like npm's."""
    files = {name: name.encode() for name in FILES.values()}
    files["package.json"] = json.dumps({"name": "uplot", "license": "MIT", **about}).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_a_new_version_replaces_the_files_and_the_manifest(tmp_path: Path) -> None:
    archive = package(tmp_path / "new.tgz", version="2.0.0")
    manifest = unpack(archive, tmp_path, {"version": "1.0.0", "integrity": "sha512-old"})
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest
    assert manifest["integrity"].startswith("sha512-")
    assert (tmp_path / "uplot.min.js").read_text() == "dist/uPlot.iife.min.js"
    again = unpack(archive, tmp_path, manifest)
    assert again == manifest


def test_another_package_under_the_same_version_is_refused(tmp_path: Path) -> None:
    archive = package(tmp_path / "other.tgz", version="1.0.0")
    with pytest.raises(SystemExit, match=r"uplot 1\.0\.0 is not the package that manifest"):
        unpack(archive, tmp_path, {"version": "1.0.0", "integrity": "sha512-known"})
    assert not (tmp_path / "uplot.min.js").exists()
