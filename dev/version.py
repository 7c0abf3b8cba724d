"""The product's version: written once in trainyard_api, and from there to both charts.

python -m dev.version                 print it
python -m dev.version set 0.2.0       write a new one everywhere
python -m dev.version check [v0.2.0]  fail if a chart, or this tag and the changelog, disagree
python -m dev.version notes           print the changelog's section about it
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
# hatchling reads the same line for the wheel (pyproject.toml, tool.hatch.version).
SOURCE = Path("api/trainyard_api/__init__.py")
CHARTS = (Path("charts/operator/Chart.yaml"), Path("charts/serving/Chart.yaml"))
CHANGELOG = Path("CHANGELOG.md")

# A version that PEP 440, SemVer (Helm) and image tags all accept.
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-rc\.[1-9]\d*)?")
_IN_SOURCE = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_IN_CHART = re.compile(r'^(version: |appVersion: ")([^"\n]+)', re.MULTILINE)


class VersionError(Exception):
    """What is wrong, one line for each file."""


def current(repo: Path = REPO) -> str:
    """The version. Raises VersionError if its source has none that every tool accepts."""
    found = _IN_SOURCE.findall((repo / SOURCE).read_text())
    if len(found) != 1 or not VERSION.fullmatch(found[0]):
        raise VersionError(f'{SOURCE}: expected one line `__version__ = "X.Y.Z"`')
    return str(found[0])


def write(version: str, repo: Path = REPO) -> list[Path]:
    """Write `version` to its source and to the charts; the files, relative to `repo`.

    Raises VersionError for one that is not X.Y.Z or X.Y.Z-rc.N.
    """
    if not VERSION.fullmatch(version):
        raise VersionError(f"{version}: not a version; use X.Y.Z or X.Y.Z-rc.N")
    source = repo / SOURCE
    source.write_text(_IN_SOURCE.sub(f'__version__ = "{version}"', source.read_text()))
    for path in CHARTS:
        chart = repo / path
        chart.write_text(_IN_CHART.sub(rf"\g<1>{version}", chart.read_text()))
    return [SOURCE, *CHARTS]


def check(tag: str | None = None, repo: Path = REPO) -> str:
    """The version, once the charts have it; with a tag, once tag and changelog fit as well.

    Raises VersionError that names every file that disagrees.
    """
    version = current(repo)
    wrong = []
    for path in CHARTS:
        found = [value for _, value in _IN_CHART.findall((repo / path).read_text())]
        if found != [version, version]:
            wrong.append(
                f"{path}: version and appVersion are {' and '.join(found) or 'missing'}, not"
                f" {version}; run `python -m dev.version set {version}`"
            )
    if tag is not None:
        if tag != f"v{version}":
            wrong.append(f"tag {tag}: the version is {version}, so the tag must be v{version}")
        try:
            notes(version, repo)
        except VersionError as error:
            wrong.append(str(error))
    if wrong:
        raise VersionError("\n".join(wrong))
    return version


def notes(version: str, repo: Path = REPO) -> str:
    """What the changelog says about `version`, Markdown. Raises VersionError if it has no date."""
    heading = re.compile(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", re.MULTILINE)
    text = (repo / CHANGELOG).read_text()
    if not (found := heading.search(text)):
        raise VersionError(f"{CHANGELOG}: no heading `## [{version}] - YYYY-MM-DD`")
    section = re.split(r"^(?:## |\[[^]]+\]: )", text[found.end() :], maxsplit=1, flags=re.MULTILINE)
    return section[0].strip()


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        match list(arguments):
            case []:
                print(current())
            case ["set", version]:
                print("wrote", *write(version))
            case ["notes"]:
                print(notes(current()))
            case ["check"]:
                print(check())
            case ["check", tag]:
                print(check(tag))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except VersionError as error:
        print(f"version: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
