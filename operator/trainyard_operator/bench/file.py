"""Reads a bench file; a bad one is refused with FILE:LINE before anything runs."""

import re
from pathlib import Path
from typing import Any

from trainyard_api.bench import BenchSpec
from trainyard_operator.bench.cells import Cell, MatrixError, make_cells
from trainyard_operator.local.document import Document, read
from trainyard_operator.local.manifest import read_manifest
from trainyard_operator.local.store import UserError


def load(path: Path, overrides: dict[str, Any]) -> tuple[BenchSpec, list[Cell]]:
    """The bench of the file and its cells; `overrides` (by wire name) win over what it says.

    Raises UserError, one line per problem.
    """
    document = read(path, "bench")
    if isinstance(template := document.data.get("template"), str):
        manifest = read_manifest(path.parent / template)
        document.data["template"] = {"spec": manifest.data.get("spec", {})}
    document.data.update(overrides)
    bench = document.parse(BenchSpec)
    if bench.name is None:
        bench.name = _name(path)
    return bench, _cells(document, bench)


def _cells(document: Document, bench: BenchSpec) -> list[Cell]:
    try:
        return make_cells(bench)
    except MatrixError as error:
        found = sorted((document.line(item.location), item.message) for item in error.problems)
    raise UserError("\n".join(f"{document.path}:{line}: {text}" for line, text in found))


def _name(path: Path) -> str:
    """The file's name without its ending, as a name may be written."""
    return re.sub("[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "bench"
