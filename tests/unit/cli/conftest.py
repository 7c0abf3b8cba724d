"""Fixtures of these tests: a home of its own for each."""

from pathlib import Path

import pytest

from tests.support.local.box import box as box
from trainyard_local.store import HOME_ENV


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home of its own for commands called in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME_ENV, str(tmp_path / "home"))
    return tmp_path
