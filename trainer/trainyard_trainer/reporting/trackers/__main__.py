"""Sends a run's metrics to MLflow or TensorBoard:

    python -m trainyard_trainer.reporting.trackers RUN_DIR mlflow|tensorboard

Sends the records that the tracker does not have yet. A run with report_to starts it with --follow;
run it yourself to send what was not sent during an outage. It may be repeated.
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

POLL = 0.5  # seconds between reads of the file
RETRY = 5.0  # seconds between attempts to reach a tracker
BATCH = 200  # lines per request


class Lines:
    """Reads metrics.jsonl from the start in batches; a batch is repeated until it is committed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = 0

    def read(self) -> list[Record]:
        """The next complete lines, at most BATCH."""
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

    def commit(self) -> bool:
        """Move past the lines last read; False if there were none."""
        self._file.seek(self._size, os.SEEK_CUR)
        return self._size > 0

    def status(self) -> str | None:
        """How the newest attempt ended, from the last line; None while it runs."""
        position = self._file.tell()
        self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - 1000))
        last = self._file.read().splitlines()[-1:]
        self._file.seek(position)
        record = parse_record(last[0]) if last else None
        return record.get("status") if record else None


def forward(lines: Lines, sink: Sink, trainer: int | None) -> int:
    """Send all records; with `trainer` (a process id) follow until that process ends."""
    warned = False
    while True:
        # Checked before the lines are read, so that the last ones are not missed.
        exited = trainer is not None and os.getppid() != trainer
        status = lines.status() or ("KILLED" if exited else None)
        over = status is not None or trainer is None
        try:
            sink.send(lines.read())
            if lines.commit():
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
                    f"warning: {sink.name}: {error}; training continues, its metrics are sent"
                    " later",
                    file=sys.stderr,
                    flush=True,
                )
            _pause(RETRY, trainer)
        else:
            time.sleep(POLL)


def _pause(seconds: float, trainer: int | None) -> None:
    """Sleep, but no longer than the trainer runs."""
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
    """Lock the tracker for this run, so that nothing is sent twice; None if it is locked."""
    import fcntl

    file = (run_dir / f".{name}.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        pass  # the file system has no locks
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if everything was sent."""
    parser = argparse.ArgumentParser(
        prog="python -m trainyard_trainer.reporting.trackers", description=__doc__
    )
    parser.add_argument("run_dir", type=Path, help="where the run's metrics.jsonl is")
    parser.add_argument("tracker", choices=("mlflow", "tensorboard"))
    parser.add_argument("--follow", type=int, metavar="PID", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.follow:
        # It ends after the trainer; torchrun and Ctrl-C signal the whole process group.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.nice(19)
    try:
        lines = Lines(options.run_dir / HISTORY_FILE)
        while (locked := lock(options.run_dir, options.tracker)) is None:
            if options.follow is None or os.getppid() != options.follow:
                print(f"{options.run_dir} is already being sent to {options.tracker}")
                return 1
            time.sleep(POLL)
        with locked:
            return forward(lines, _open(options.tracker, options.run_dir), options.follow)
    except OSError as error:
        print(f"warning: {options.tracker}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
