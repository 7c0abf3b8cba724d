"""What the Hub's real libraries raise for a name that does not exist and an unreachable Hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trainer.hub import Hub, hub
from tests.support.trainer.ranks import ROOT

# Not the one of the other tests, which are offline.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
Loads = dict[str, tuple[str, str]]


class Loader:
    """A process that loads from one Hub."""

    def __init__(self, url: str, cache: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.trainer.hub_loads"],
            cwd=ROOT,
            env=ENVIRONMENT | {"HF_ENDPOINT": url, "HF_HOME": str(cache)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def load(self) -> Loads:
        """The error of each way to load."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: Loads = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """A Hub without any repository."""
    with hub({}) as server:
        yield server


@pytest.fixture(scope="module")
def loader(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    loader = Loader(server.url, tmp_path_factory.mktemp("cache"))
    yield loader
    loader.close()


@pytest.mark.parametrize("status", [None, 401, 403])
def test_what_is_not_there_stops_the_run(server: Hub, loader: Loader, status: int | None) -> None:
    """A wrong name, a missing token, no access: only the user can fix that."""
    server.status = status
    for way, (kind, message) in loader.load().items():
        assert (way, kind) == (way, "ConfigError"), message
        assert "me/nothing" in message
        assert " could not be loaded" in message
        assert "\n" not in message


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_may_come_is_waited_for(server: Hub, loader: Loader, status: int) -> None:
    """Too many requests, a server that fails, and one that hangs up without an answer (0)."""
    server.status = status
    for way, (kind, message) in loader.load().items():
        assert (way, kind) == (way, "HubUnreachableError"), message
        assert f"me/nothing: the Hub ({server.url}) can't be reached: " in message
        assert "\n" not in message


def test_an_unreachable_hub_is_waited_for(loader: Loader, server: Hub) -> None:
    """The last of these tests: it ends the server."""
    server.shutdown()
    server.server_close()
    for way, (kind, message) in loader.load().items():
        assert (way, kind) == (way, "HubUnreachableError"), message
