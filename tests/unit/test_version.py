"""One version: the charts, the wheel and a release's tag have that of trainyard_api."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import trainyard_api
from dev import version
from dev.version import CHANGELOG, CHARTS, REPO, SOURCE, VersionError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that have the version, to be changed."""
    for path in (SOURCE, CHANGELOG, *CHARTS):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPO / path, tmp_path / path)
    return tmp_path


def test_the_charts_have_the_version_of_the_code() -> None:
    assert version.check() == trainyard_api.__version__
    for path in CHARTS:
        chart = yaml.safe_load((REPO / path).read_text())
        assert chart["version"] == chart["appVersion"] == trainyard_api.__version__


def test_the_wheel_takes_the_version_of_the_code() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert Path(project["tool"]["hatch"]["version"]["path"]) == SOURCE


@pytest.mark.parametrize("new", ["0.2.0", "1.10.3", "2.0.0-rc.1"])
def test_a_new_version_is_written_everywhere(copy: Path, new: str) -> None:
    assert version.write(new, copy) == [SOURCE, *CHARTS]
    assert version.check(repo=copy) == new
    for path in CHARTS:
        before, after = ((root / path).read_text() for root in (REPO, copy))
        assert yaml.safe_load(after)["appVersion"] == yaml.safe_load(after)["version"] == new
        assert after == before.replace(trainyard_api.__version__, new)


@pytest.mark.parametrize("new", ["v1.0.0", "1.0", "1.0.0.dev1", "01.0.0", "1.0.0-rc1", "1.0.0\n"])
def test_what_not_every_tool_accepts_is_refused(copy: Path, new: str) -> None:
    with pytest.raises(VersionError, match=re.escape("use X.Y.Z or X.Y.Z-rc.N")):
        version.write(new, copy)
    assert version.check(repo=copy) == trainyard_api.__version__


def test_a_chart_that_disagrees_is_named(copy: Path) -> None:
    chart = copy / CHARTS[1]
    chart.write_text(chart.read_text().replace("appVersion: ", 'appVersion: "9.9.9"  # '))
    with pytest.raises(VersionError) as raised:
        version.check(repo=copy)
    assert str(raised.value).startswith("charts/serving/Chart.yaml: version and appVersion are ")
    assert "9.9.9" in str(raised.value)


def test_a_release_needs_its_tag_and_a_dated_changelog(copy: Path) -> None:
    version.write("7.8.9", copy)
    with pytest.raises(VersionError) as raised:
        version.check("v7.8.8", copy)
    assert "the tag must be v7.8.9" in str(raised.value)
    assert "no heading `## [7.8.9] - YYYY-MM-DD`" in str(raised.value)
    sections = ["# Changelog", "## [Unreleased]", "- later", "## [7.8.9] - 2026-02-03", "### Added"]
    sections += ["- this", "## [7.8.8] - 2026-02-01", "- earlier"]
    (copy / CHANGELOG).write_text("\n\n".join(sections) + "\n")
    assert version.check("v7.8.9", copy) == "7.8.9"
    assert version.notes("7.8.9", copy) == "### Added\n\n- this"
    assert version.notes("7.8.8", copy) == "- earlier"


def test_the_command_prints_the_version_or_one_line() -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "dev.version", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)

    assert run().stdout == f"{trainyard_api.__version__}\n"
    wrong = run("check", "v99.0.0")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[0].startswith("version: tag v99.0.0: ")
    assert run("sett").returncode == 2


def test_the_supported_pythons_are_those_of_the_gate_and_the_tools() -> None:
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    project, tools = settings["project"], settings["tool"]
    found = re.findall(r"Programming Language :: Python :: (3\.\d+)", str(project["classifiers"]))
    oldest, *_, newest = sorted(found, key=lambda name: int(name.removeprefix("3.")))
    # It installs, without any dependency, on what images of others have, for `import trainyard`.
    assert project["requires-python"] == ">=3.9"
    assert tools["ruff"]["per-file-target-version"]["sdk/**"] == "py39"
    for requirement in project["dependencies"]:
        assert requirement.endswith(f" python_version >= '{oldest}'"), requirement
    assert tools["mypy"]["python_version"] == oldest
    assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    gate = (REPO / ".ci/run").read_text()
    assert f"oldest=$(python {oldest})\nnewest=$(python {newest})\n" in gate
