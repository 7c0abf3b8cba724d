"""The agent's look at its ranks, which takes longer the more there are."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.patience import SECONDS
from trainyard_agent import stacks
from trainyard_agent.ranks import Rank
from trainyard_agent.report import Report
from trainyard_agent.stacks import Stack
from trainyard_agent.watch import HangWatch, Settings


def test_stacks_that_take_long_to_read_are_no_pause_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pause would give the ranks time again, and again after each look."""

    def read(*_: Any, **__: Any) -> Stack:
        time.sleep(0.5)  # ten of the watch's intervals
        return Stack(("train.py:3 main",), False, "", own="train.py:3 main")

    monkeypatch.setattr(stacks, "read", read)
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    found, ended = threading.Event(), []

    def end(message: str) -> None:
        ended.append(message)
        found.set()

    ranks: Any = SimpleNamespace(
        ranks=lambda: [Rank(rank.pid, -1, 0, 0, 1, 1)], exits=list, world_size=1
    )
    settings = Settings(after=1.0, restarts=True, trains=False, peers=())
    watch = HangWatch(settings, ranks, Report("mine", 1), end)
    try:
        assert found.wait(SECONDS)
    finally:
        watch.close()
        rank.kill()
        rank.wait()
    assert "rank 0" in ended[0]
