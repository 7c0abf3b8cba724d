"""metrics.jsonl: a run's log, one JSON object per line, consistent across restarts."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from trainyard_storage.files import write_text_atomic
from trainyard_trainer.reporting.timing import since_start

HISTORY_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
PICTURE_FILE = "loss.png"
PICTURE_EVERY = 30.0  # seconds between redrawings while training
DRAWING_TIMEOUT = 60.0  # seconds


class History:
    """Rank 0's log of a run and its loss curve. A full disk causes a warning, not a failure."""

    def __init__(
        self,
        run_dir: Path,
        run: str,
        resumed_from: int | None,
        attempt: int,
        about: dict[str, Any] | None = None,
    ) -> None:
        """`about`: the attempt's settings, for its first record."""
        self.run_dir = run_dir
        self.run = run
        self.path = run_dir / HISTORY_FILE
        self._warned = False
        self._drawing: subprocess.Popen[bytes] | None = None
        self._drawn = time.monotonic()
        self._began = time.time() - since_start()
        self._seconds_before = 0.0
        self.last_logged_step = 0  # of earlier attempts
        self._last_incomplete = False
        self._file: BinaryIO | None = None
        try:
            self._truncate(resumed_from or 0)
            # A new file, kept open: an earlier attempt that is still alive writes to the old one.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            self._warn(error)
        event = "started" if resumed_from is None else "resumed"
        about = {"run": run, "time": self._began} | (about or {})
        self.add(step=resumed_from or 0, event=event, attempt=attempt, **about)

    def add(self, **record: Any) -> None:
        """Append a record, which must have a step; the time is added."""
        if self._file is None:
            return
        line = json.dumps({"time": time.time()} | record) + "\n"
        data = ("\n" + line if self._last_incomplete else line).encode()
        try:
            # A short write means that the disk is full: the next write raises.
            self._last_incomplete = self._file.write(data) < len(data)
        except OSError as error:
            self._last_incomplete = True
            self._warn(error)

    def end(self, step: int, status: str) -> None:
        """The last record of an attempt; `status` is one of MLflow's.

        The runtime is the sum over all attempts, without the time between them.
        """
        seconds = self._seconds_before + time.time() - self._began
        self.add(step=step, event="ended", status=status, train_runtime=round(seconds, 3))

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write the results of the newest evaluation to evaluation.json."""
        text = json.dumps(evaluation, indent=2) + "\n"
        try:
            write_text_atomic(self.run_dir / EVALUATION_FILE, text, durable=False)
        except OSError as error:
            self._warn(error)

    def draw(self, last: bool = False) -> None:
        """Redraw the loss curve in a process of lowest priority, so that steps are not slowed.

        Skipped if the previous one is recent or still being drawn, unless this is the `last` one.
        """
        drawing = self._drawing is not None and self._drawing.poll() is None
        recent = time.monotonic() - self._drawn < PICTURE_EVERY
        if not last and (drawing or recent):
            return
        self.finish_drawing()
        self._drawn = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "trainyard_trainer.reporting.plot",
            str(self.run_dir),
            self.run,
        ]
        if not last:
            command.append("--nice")
        with contextlib.suppress(OSError):
            self._drawing = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def finish_drawing(self) -> None:
        """Wait for the loss curve, at most DRAWING_TIMEOUT."""
        if self._drawing is not None:
            try:
                self._drawing.wait(timeout=DRAWING_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._drawing.kill()
                self._drawing.wait()
            self._drawing = None

    def _truncate(self, step: int) -> None:
        """Remove what earlier attempts logged after the step this one resumes from."""
        if not self.path.exists():
            return
        lines = list(read_history(self.path))
        self.last_logged_step = max((line["step"] for line in lines), default=0)
        kept = [line for line in lines if line["step"] <= step and step]
        self._seconds_before = _seconds(kept)
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            message = f"warning: {self.path}: {error.strerror}; training continues without it"
            print(message, file=sys.stderr, flush=True)


def _seconds(records: list[dict[str, Any]]) -> float:
    """Total duration of the attempts of these records, each up to its last record."""
    seconds, began, last = 0.0, 0.0, 0.0
    for record in records:
        now = record.get("time", last)
        if record.get("event") in ("started", "resumed"):
            seconds += last - began
            began = now
        last = now
    return seconds + last - began


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; incomplete lines are skipped."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := parse_record(line))]


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if a kill or a full disk has left it incomplete."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None
