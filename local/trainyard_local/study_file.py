"""Reads a ScalingStudy manifest; a bad one is refused with FILE:LINE before anything runs."""

from pathlib import Path
from typing import Any

from trainyard_api.study import STUDY_KIND, ScalingStudy
from trainyard_local.document import Document
from trainyard_local.manifest import read_manifest
from trainyard_local.store import UserError
from trainyard_study.cells import Cell, MatrixError, make_cells


def load(path: Path, overrides: dict[str, Any] | None = None) -> tuple[ScalingStudy, list[Cell]]:
    """The file's study and its cells; `overrides` (of the spec, by wire name) win over the file.

    Raises UserError, one line per problem.
    """
    document = read_manifest(path, STUDY_KIND)
    if isinstance(spec := document.data.get("spec"), dict):
        spec.update(overrides or {})
    study = document.parse(ScalingStudy)
    return study, _cells(document, study)


def _cells(document: Document, study: ScalingStudy) -> list[Cell]:
    try:
        return make_cells(study.spec)
    except MatrixError as error:
        found = sorted(
            (document.line(("spec", *item.location)), item.message) for item in error.problems
        )
    raise UserError("\n".join(f"{document.path}:{line}: {text}" for line, text in found))
