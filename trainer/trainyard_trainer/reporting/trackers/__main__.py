"""Sends a run's metrics to MLflow or TensorBoard:

    python -m trainyard_trainer.reporting.trackers RUN_DIR mlflow|tensorboard

Sends what the tracker hasn't got yet. A run that reports to a tracker has this beside it all the
time (--follow); by hand it sends what an outage has left, as often as you like.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainyard_trainer.reporting.history import HISTORY_FILE, parse_record
from trainyard_trainer.reporting.trackers.sink import Record, Sink, Unreachable

POLL = 0.5  # seconds between looks at the file
RETRY = 5.0  # seconds between tries to reach a tracker that doesn't answer
BATCH = 200  # lines at a time


class Lines:
    """metrics.jsonl from its first line on, in pieces; a piece stays until it is taken."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = 0

    def look(self) -> list[Record]:
        """The next complete lines, BATCH at most."""
        start, records, self._size = self._file.tell(), [], 0
        for _ in range(BATCH):
            line = self._file.readline()
            if not line.endswith(b"\n"):
                break
            self._size += len(line)
            if record := parse_record(line):
                records.append(record)
        self._file.seek(start)
        return records

    def take(self) -> bool:
        """Done with these lines; False if there were none."""
        self._file.seek(self._size, os.SEEK_CUR)
        return self._size > 0

    def status(self) -> str | None:
        """How the newest attempt ended, which is its last line; None as long as it hasn't."""
        here = self._file.tell()
        self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - 1000))
        last = self._file.read().splitlines()[-1:]
        self._file.seek(here)
        record = parse_record(last[0]) if last else None
        return record.get("status") if record else None


def forward(lines: Lines, sink: Sink, trainer: int | None) -> int:
    """Send everything, and with `trainer` (a process id) what it writes until it ends."""
    warned = False
    while True:
        # Looked at before the lines are, so that its last words are not missed.
        gone = trainer is not None and os.getppid() != trainer
        status = lines.status() or ("KILLED" if gone else None)
        over = status is not None or trainer is None
        try:
            sink.send(lines.look())
            if lines.take():
                continue
            if status:
                sink.finish(status)
            if over:
                return 0
        except Unreachable as error:
            if over:
                if trainer is None:
                    print(f"{sink.name}: {error}", file=sys.stderr)
                return 1
            if not warned:
                warned = True
                print(
                    f"warning: {sink.name}: {error}; training goes on, its metrics are sent later",
                    file=sys.stderr,
                    flush=True,
                )
            _pause(RETRY, trainer)
        else:
            time.sleep(POLL)


def _pause(seconds: float, trainer: int | None) -> None:
    """Wait, but not for longer than the trainer lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.getppid() == trainer:
        time.sleep(POLL)


def _open(name: str, run_dir: Path) -> Sink:
    if name == "tensorboard":
        from trainyard_trainer.reporting.trackers.to_tensorboard import TensorBoardSink

        return TensorBoardSink(run_dir)
    from trainyard_trainer.reporting.trackers.to_mlflow import MLflowSink

    return MLflowSink(run_dir)


def lock(run_dir: Path, name: str) -> Any:
    """Keep a second one off this run: together they would send things twice. None: there is one."""
    import fcntl

    file = (run_dir / f".{name}.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        pass  # a file system without locks
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all is sent."""
    parser = argparse.ArgumentParser(
        prog="python -m trainyard_trainer.reporting.trackers", description=__doc__
    )
    parser.add_argument("run_dir", type=Path, help="where the run's metrics.jsonl is")
    parser.add_argument("tracker", choices=("mlflow", "tensorboard"))
    parser.add_argument("--follow", type=int, metavar="PID", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.follow:
        # The end of the trainer is what ends this; torchrun and Ctrl-C signal the whole group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.nice(19)
    try:
        lines = Lines(options.run_dir / HISTORY_FILE)
        while (mine := lock(options.run_dir, options.tracker)) is None:
            if options.follow is None or os.getppid() != options.follow:
                print(f"{options.run_dir} is being sent to {options.tracker} already")
                return 1
            time.sleep(POLL)
        with mine:
            return forward(lines, _open(options.tracker, options.run_dir), options.follow)
    except OSError as error:
        print(f"warning: {options.tracker}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
