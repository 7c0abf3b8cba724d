"""Checkpoint manifest: what makes a directory a checkpoint or a model, and its names on disk.

Layout of a run's directory::

    checkpoints/step-00000200/   training state, to resume from
    models/step-00000500/        exported model in Hugging Face form, to serve
    attempt                      the newest attempt's number, its writer and the run's uid, a line
                                 each: other writers must not publish

Readers ignore a directory without a valid manifest.json. Writers fill a `.tmp-*`
directory beside it, write the manifest last, sync, and rename. The manifest holds the sha256 of
every file, and of itself: no byte of a checkpoint can change unnoticed.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trainyard_api.base import Record

MANIFEST = "manifest.json"
FORMAT = 1
CHECKPOINTS = "checkpoints"
MODELS = "models"
ATTEMPT_FILE = "attempt"
STEP_NAME = re.compile(r"step-(\d{8,})")


class FileEntry(Record):
    """One file of the directory."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Record):
    """What a checkpoint or a model directory holds."""

    format: Literal[1] = 1
    kind: Literal["checkpoint", "model"]
    run: str
    attempt: int
    recipe: str
    serving: str | None = Field(
        default=None,
        description="The serving app that answers from this model, as its recipe names it."
        " Absent: its class in config.json decides.",
    )
    step: int = Field(ge=0)
    total_steps: int | None = None
    world_size: int = 1
    created: datetime
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(description="Path relative to the directory -> entry.")


def step_name(step: int) -> str:
    """Directory name of a step: sorts as the steps do."""
    return f"step-{step:08d}"


def step_of(directory: Path) -> int:
    """The inverse of `step_name`."""
    match = STEP_NAME.fullmatch(directory.name)
    assert match, directory
    return int(match[1])
