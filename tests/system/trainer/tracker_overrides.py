"""Settings of the trackers for tests on a busy machine; preloaded into rank_server.py.

The process that forwards metrics runs at the lowest priority, which may get no CPU time beside
other tests: here it keeps the trainer's priority. DRAIN_TIMEOUT is how many seconds a trainer waits
for it when it ends, in place of launcher.DRAIN_TIMEOUT.
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
from trainyard_trainer.reporting.trackers.__main__ import main
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
    launcher.DRAIN_TIMEOUT = float(os.environ.get("DRAIN_TIMEOUT", launcher.DRAIN_TIMEOUT))
    _finish(self)


launcher.TrackerProcesses.__init__ = init  # type: ignore[assignment, method-assign]
launcher.TrackerProcesses.finish = finish  # type: ignore[method-assign]
