"""Reads a TrainingRun manifest; a bad one is refused with FILE:LINE and what to change."""

from pathlib import Path

from trainyard_api.run import API_VERSION, KIND, TrainingRun
from trainyard_operator.local.document import Document, read
from trainyard_operator.local.store import UserError


def load(path: Path) -> TrainingRun:
    """The run that the file asks for. Raises UserError, one line per problem."""
    return read_manifest(path).parse(TrainingRun)


def read_manifest(path: Path) -> Document:
    """The file's document, if it says that it is a TrainingRun. Raises UserError."""
    document = read(path, KIND)
    got = (document.data.get("apiVersion"), document.data.get("kind"))
    if got != (API_VERSION, KIND):
        shown = f"apiVersion: {got[0]} and kind: {got[1]}"
        raise UserError(
            f"{path}: apiVersion: {API_VERSION} and kind: {KIND} are expected, not {shown}"
        )
    return document
