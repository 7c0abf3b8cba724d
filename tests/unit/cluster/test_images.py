"""The images' recipes and locks: complete, hashed, in agreement, and without an address in them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from dev.images.build import IMAGES
from dev.images.builder import REPO
from dev.images.lock import required

LOCKS = sorted((REPO / "images" / "requirements").glob("*.txt"))


def pins(lock: Path) -> dict[str, set[str]]:
    """Each package's versions (more than one where markers differ)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.M):
        found.setdefault(name, set()).add(version)
    return found


def names(requirements: list[str]) -> set[str]:
    matches = [re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements]
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in matches if match}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    entries = re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.M)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert not re.search(r"^\s*--?(index|extra-index|find-links|i )", text, re.M)


@pytest.mark.parametrize("name", ["operator", "trainer", "serving"])
def test_a_lock_has_everything_that_its_image_imports(name: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = names(project["dependencies"]) | names(project["optional-dependencies"][name])
    lock = REPO / "images" / "requirements" / f"{name}.txt"
    assert wanted - set(pins(lock)) == set(), "run: python3 -m dev.images lock"


@pytest.mark.parametrize(("name", "package"), [("agent", "py-spy"), ("torch", "torch")])
def test_a_lock_of_one_package_is_made_from_its_bound(name: str, package: str) -> None:
    first = (REPO / "images" / "requirements" / f"{name}.txt").read_text().splitlines()[0]
    assert f" from {required(package)}: " in first, "run: python3 -m dev.images lock"


@pytest.mark.parametrize("name", ["trainer", "serving"])
def test_images_above_torch_do_not_reinstall_it(name: str) -> None:
    below = pins(REPO / "images" / "requirements" / "torch.txt")
    above = pins(REPO / "images" / "requirements" / f"{name}.txt")
    assert {p: above[p] for p in below if p in above and above[p] != below[p]} == {}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_a_numeric_user_that_is_not_root(name: str) -> None:
    recipe = (REPO / "images" / f"{name}.Containerfile").read_text()
    users = re.findall(r"^USER (\d+):(\d+)$", recipe, re.M)
    assert users == [("10001", "10001")]
    assert recipe.index("USER") > recipe.rfind("RUN")
