"""metrics.jsonl: what a run logged, one JSON object a line, consistent across restarts."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HISTORY_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
PICTURE_FILE = "loss.png"
PICTURE_EVERY = 30.0  # seconds between redrawings while training
DRAWING_TIMEOUT = 60.0  # seconds


class History:
    """Rank 0's log of a run and its picture. A full disk costs a warning, never a step."""

    def __init__(self, run_dir: Path, run: str, resumed_from: int | None, attempt: int) -> None:
        self.run_dir = run_dir
        self.run = run
        self.path = run_dir / HISTORY_FILE
        self._warned = False
        self._drawing: subprocess.Popen[bytes] | None = None
        self._drawn = time.monotonic()
        try:
            self._cut(resumed_from or 0)
        except OSError as error:
            self._warn(error)
        if resumed_from is not None:
            self.add(step=resumed_from, event="resumed", attempt=attempt)

    def add(self, **record: Any) -> None:
        """Append one record; every record has a step."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            self._warn(error)

    def keep_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write all that is known of the newest evaluation to a file of its own."""
        path = self.run_dir / EVALUATION_FILE
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
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
        command = [sys.executable, "-m", "trainyard_trainer.plot", str(self.run_dir), self.run]
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
        kept = [line for line in read_history(self.path) if line["step"] <= step and step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        # A new file: should the earlier attempt still write, it writes into the old one.
        os.replace(temporary, self.path)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            message = f"warning: {self.path}: {error.strerror}; training goes on without it"
            print(message, file=sys.stderr, flush=True)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                records.append(record)
    return records
