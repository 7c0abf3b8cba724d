"""metrics.jsonl: what a run logged, one JSON object a line, consistent across restarts."""

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
    """Rank 0's log of a run and its picture. A full disk costs a warning, never a step."""

    def __init__(
        self,
        run_dir: Path,
        run: str,
        resumed_from: int | None,
        attempt: int,
        about: dict[str, Any] | None = None,
    ) -> None:
        """`about`: the attempt's settings, to be kept with its first record."""
        self.run_dir = run_dir
        self.run = run
        self.path = run_dir / HISTORY_FILE
        self._warned = False
        self._drawing: subprocess.Popen[bytes] | None = None
        self._drawn = time.monotonic()
        self._began = time.time() - since_start()
        self._seconds_before = 0.0
        self.furthest = 0  # the newest step that an earlier attempt has logged
        self._torn = False
        self._file: BinaryIO | None = None
        try:
            self._cut(resumed_from or 0)
            # Kept open: should an earlier attempt still write, it writes into the file that it
            # has, which is no longer this one.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            self._warn(error)
        event = "started" if resumed_from is None else "resumed"
        about = {"run": run, "time": self._began} | (about or {})
        self.add(step=resumed_from or 0, event=event, attempt=attempt, **about)

    def add(self, **record: Any) -> None:
        """Append one record; every record has a step, and gets a time."""
        if self._file is None:
            return
        line = json.dumps({"time": time.time()} | record) + "\n"
        data = ("\n" + line if self._torn else line).encode()
        try:
            # Less is written when the disk fills up just then: the next record finds it full.
            self._torn = self._file.write(data) < len(data)
        except OSError as error:
            self._torn = True
            self._warn(error)

    def end(self, step: int, status: str) -> None:
        """The last record of an attempt; `status` in MLflow's words.

        The runtime is that of all attempts: what was lost between them is not in it.
        """
        seconds = self._seconds_before + time.time() - self._began
        self.add(step=step, event="ended", status=status, train_runtime=round(seconds, 3))

    def keep_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write all that is known of the newest evaluation to a file of its own."""
        text = json.dumps(evaluation, indent=2) + "\n"
        try:
            write_text_atomic(self.run_dir / EVALUATION_FILE, text, durable=False)
        except OSError as error:
            self._warn(error)

    def draw(self, last: bool = False) -> None:
        """Redraw the picture in another process of lowest priority: the steps don't notice.

        Skipped when the last one is recent or still being drawn, unless it is the `last` one.
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
        """Wait for the picture; a picture that takes too long is given up."""
        if self._drawing is not None:
            try:
                self._drawing.wait(timeout=DRAWING_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._drawing.kill()
                self._drawing.wait()
            self._drawing = None

    def _cut(self, step: int) -> None:
        """Forget what an earlier attempt logged beyond the step this one goes on from."""
        if not self.path.exists():
            return
        lines = list(read_history(self.path))
        self.furthest = max((line["step"] for line in lines), default=0)
        kept = [line for line in lines if line["step"] <= step and step]
        self._seconds_before = _seconds(kept)
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            message = f"warning: {self.path}: {error.strerror}; training goes on without it"
            print(message, file=sys.stderr, flush=True)


def _seconds(records: list[dict[str, Any]]) -> float:
    """How long the attempts of these records took, each to the last record that was kept."""
    seconds, began, last = 0.0, 0.0, 0.0
    for record in records:
        now = record.get("time", last)
        if record.get("event") in ("started", "resumed"):
            seconds += last - began
            began = now
        last = now
    return seconds + last - began


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := parse_record(line))]


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for one that a kill or a full disk has spoilt."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None
