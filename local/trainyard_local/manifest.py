"""Reads the manifests of runs and studies; errors are reported as FILE:LINE: what to change."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainyard_api.base import validation_errors
from trainyard_api.recipes import unknown_keys
from trainyard_api.run import API_VERSION, KIND, TrainingRun
from trainyard_api.study import STUDY_KIND, ScalingStudy
from trainyard_local import preflight
from trainyard_local.store import UserError
from trainyard_study.cells import Cell, MatrixError, cell_problems, make_cells

Location = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
# The command that takes a manifest of each kind.
COMMANDS = {KIND: "run", STUDY_KIND: "study"}


def load_run(path: Path) -> TrainingRun:
    """The run in the file. Raises UserError, with one line per problem."""
    return _load_run(_read_kind(path, KIND))


def load_study(
    path: Path, overrides: dict[str, Any] | None = None
) -> tuple[ScalingStudy, list[Cell]]:
    """The study in the file, and its cells; `overrides` (spec fields by wire name) replace values.

    Raises UserError, with one line per problem.
    """
    document = _read_kind(path, STUDY_KIND)
    if isinstance(spec := document.data.get("spec"), dict):
        spec.update(overrides or {})
    return _load_study(document)


def validate(path: Path) -> str:
    """A line about a valid manifest. Raises UserError, with one line per problem.

    Values of settings are checked, too, if the trainer is installed.
    """
    kind = read(path, KIND).data.get("kind")
    document = _read_kind(path, STUDY_KIND if kind == STUDY_KIND else KIND)
    if kind == STUDY_KIND:
        study, cells = _load_study(document)
        runs = [cell.run for cell in cells]
        valid = f"{kind} {study.name} is valid: {len(cells)} cells"
        found, unchecked = preflight.wrong_settings(runs)
        _refuse_cells(document, study, cells, found)
    else:
        run = _load_run(document)
        valid = f"{kind} {run.name} is valid"
        found, unchecked = preflight.wrong_settings([run])
        document.refuse(found[0])
    return f"{path}: {valid}" + (f"; {unchecked}" if unchecked else "")


@dataclass(frozen=True)
class Document:
    """The data of a YAML file, and the line of each part."""

    path: Path
    data: Any
    lines: dict[Location, int]

    def line(self, location: Location) -> int:
        """The line of `location`, or of the closest parent that the file has."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def parse(self, cls: type[M]) -> M:
        """The data as a `cls`. Raises UserError, as refuse does."""
        try:
            # Strict, and from JSON: a quoted number is a string, as for the API server.
            return cls.model_validate_json(json.dumps(self.data, default=str), strict=True)
        except ValidationError as error:
            locations = [item["loc"] for item in error.errors()]
            self.refuse(zip(locations, validation_errors(error), strict=True))
            raise

    def refuse(self, problems: Iterable[tuple[Location, str]]) -> None:
        """Raise UserError, with a line per problem in the file's order, if there is any."""
        lines = sorted((self.line(location), text) for location, text in problems)
        if lines:
            raise UserError("\n".join(f"{self.path}:{line}: {text}" for line, text in lines))


def read(path: Path, expected: str) -> Document:
    """The only document in the file; error messages call it an `expected`. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file: UTF-8 YAML is expected") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    node = _single(path, text, expected)
    _refuse_duplicates(path, node)
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a {expected} is expected, not a {type(data).__name__}")
    return Document(path, data, dict(_lines(node)))


def _read_kind(path: Path, kind: str) -> Document:
    """The file's document, if it is of `kind`. Raises UserError."""
    document = read(path, kind)
    actual = (document.data.get("apiVersion"), document.data.get("kind"))
    if actual != (API_VERSION, kind):
        command = COMMANDS.get(str(actual[1])) if actual[0] == API_VERSION else None
        hint = f": use `trainyard {command} {path}`" if command else ""
        raise UserError(
            f"{path}: apiVersion: {API_VERSION} and kind: {kind} are expected,"
            f" not apiVersion: {actual[0]} and kind: {actual[1]}{hint}"
        )
    return document


def _load_run(document: Document) -> TrainingRun:
    run = document.parse(TrainingRun)
    document.refuse(unknown_keys(run))
    return run


def _load_study(document: Document) -> tuple[ScalingStudy, list[Cell]]:
    study = document.parse(ScalingStudy)
    try:
        cells = make_cells(study.spec)
    except MatrixError as error:
        document.refuse((("spec", *item.location), item.message) for item in error.problems)
        raise
    _refuse_cells(document, study, cells, [unknown_keys(cell.run) for cell in cells])
    return study, cells


def _refuse_cells(
    document: Document,
    study: ScalingStudy,
    cells: Sequence[Cell],
    found: Sequence[Iterable[tuple[Location, str]]],
) -> None:
    """Raise UserError if anything was found to be wrong with the runs of a study's cells."""
    problems = cell_problems(study.spec, cells, found)
    document.refuse((("spec", *item.location), item.message) for item in problems)


def _single(path: Path, text: str, expected: str) -> yaml.Node:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        text = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where}: invalid YAML: {text}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    documents = [node for node in documents if node is not None]
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise UserError(f"{path}:{line}: a second document starts here: one {expected} is expected")
    if not documents:
        raise UserError(f"{path}: the file is empty: a {expected} is expected")
    return documents[0]


def _lines(node: yaml.Node, location: Location = ()) -> Iterator[tuple[Location, int]]:
    """(location, line) of every key and item below `node`; lines are numbered from 1."""
    yield location, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*location, str(key.value))
            yield from _lines(value, below)
            yield below, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*location, index))


def _refuse_duplicates(path: Path, node: yaml.Node) -> None:
    """YAML forbids a duplicate key in a mapping, but parsers silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise UserError(f"{path}:{line}: duplicate key {key.value}")
                seen.add(key.value)
            _refuse_duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(path, value)
