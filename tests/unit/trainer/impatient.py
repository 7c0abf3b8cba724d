"""Trackers that get their share of a busy machine; preloaded into rank_server.py.

What forwards metrics runs at the lowest priority, which beside other tests may be none at all: here
it keeps the trainer's. And IMPATIENT is how many seconds a trainer waits for it at its end, instead
of those a user would be glad of.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from trainyard_trainer.reporting.trackers import launcher

START = """
import os, sys
os.nice = lambda _: 0
from trainyard_trainer.reporting.trackers import main
sys.exit(main())
"""

_init = launcher.TrackerProcesses.__init__
_finish = launcher.TrackerProcesses.finish


def command(run_dir: Path, name: str) -> list[str]:
    return [sys.executable, "-c", START, str(run_dir), name]


def init(self: launcher.TrackerProcesses, *arguments: Any) -> None:
    with mock.patch.object(launcher, "_command", command):
        _init(self, *arguments)


def finish(self: launcher.TrackerProcesses) -> None:
    launcher.DRAIN_TIMEOUT = float(os.environ.get("IMPATIENT", launcher.DRAIN_TIMEOUT))
    _finish(self)


launcher.TrackerProcesses.__init__ = init  # type: ignore[assignment, method-assign]
launcher.TrackerProcesses.finish = finish  # type: ignore[method-assign]
