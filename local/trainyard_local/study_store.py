"""Where a study lives on this machine: a directory, written atomically, measured by one process.

HOME/studies/NAME/  study.json   the ScalingStudy with its status, after every run
                    study.md     the table
                    study.png    the picture
                    logs/        of cells that failed
                    work/        the run that is being measured
                    lock         held by the process that measures
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.study import ScalingStudy
from trainyard_local.store import UserError, home
from trainyard_storage.files import write_text_atomic

AGAIN = "--again moves it aside and measures anew"


class StudyDir:
    """One study's directory."""

    def __init__(self, name: str, out: Path | None = None) -> None:
        self.path = (out or home() / "studies" / name).absolute()
        self.file = self.path / "study.json"
        self.table = self.path / "study.md"
        self.picture = self.path / "study.png"
        self.logs = self.path / "logs"
        self.work = self.path / "work"

    def load(self) -> ScalingStudy | None:
        """The study as last written; None where there is none. Raises UserError."""
        try:
            return ScalingStudy.model_validate_json(self.file.read_text())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UserError(f"{self.file}: {validation_message(error)}; {AGAIN}") from None

    def save(self, study: ScalingStudy) -> None:
        write_text_atomic(self.file, json.dumps(study.to_wire(), indent=1) + "\n")

    def move_aside(self, started: datetime | None) -> Path:
        """Make room for the study to be measured anew; returns where the old one is now."""
        stamp = (started or datetime.now()).astimezone().strftime("%Y%m%d-%H%M%S")
        old = self.path.with_name(f"{self.path.name}-{stamp}")
        number = 1
        while old.exists():
            number += 1
            old = self.path.with_name(f"{self.path.name}-{stamp}-{number}")
        old.mkdir()
        shutil.rmtree(self.work, ignore_errors=True)
        for entry in self.path.iterdir():
            if entry.name != "lock":
                entry.rename(old / entry.name)
        return old

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that measures this study. Raises UserError at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "unknown"
                text = f"{self.path.name} is already being measured by process {who}"
                raise UserError(text) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
