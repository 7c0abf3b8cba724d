"""Reads a manifest; a bad one is refused with FILE:LINE and what to change."""

from pathlib import Path

from trainyard_api.run import API_VERSION, KIND, TrainingRun
from trainyard_local.document import Document, read
from trainyard_local.store import UserError

# The command for a manifest of each kind.
COMMANDS = {KIND: "run", "ScalingStudy": "study"}


def load(path: Path) -> TrainingRun:
    """The run that the file asks for. Raises UserError, one line per problem."""
    return read_manifest(path, KIND).parse(TrainingRun)


def kind_of(path: Path) -> str:
    """The kind that the file says. Raises UserError where it can't be read."""
    return str(read(path, KIND).data.get("kind"))


def read_manifest(path: Path, kind: str) -> Document:
    """The file's document, if it says that it is of `kind`. Raises UserError."""
    document = read(path, kind)
    got = (document.data.get("apiVersion"), document.data.get("kind"))
    if got != (API_VERSION, kind):
        shown = f"apiVersion: {got[0]} and kind: {got[1]}"
        other = COMMANDS.get(str(got[1])) if got[0] == API_VERSION else None
        hint = f": use `trainyard {other} {path}`" if other else ""
        raise UserError(
            f"{path}: apiVersion: {API_VERSION} and kind: {kind} are expected, not {shown}{hint}"
        )
    return document
