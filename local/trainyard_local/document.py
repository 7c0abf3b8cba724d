"""Reads one YAML document and knows its lines; a bad one is refused with FILE:LINE."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainyard_api.base import validation_errors
from trainyard_local.store import UserError

Location = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """What a YAML file says, and on which line each thing stands."""

    path: Path
    data: Any
    lines: dict[Location, int]

    def line(self, location: Location) -> int:
        """Line of `location`, or of the closest thing around it that the file has."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def parse(self, cls: type[M]) -> M:
        """The data as a `cls`. Raises UserError, one line per problem, in the file's order."""
        try:
            # From JSON and strictly: as for the API server, a quoted number is no number.
            return cls.model_validate_json(json.dumps(self.data, default=str), strict=True)
        except ValidationError as error:
            found = sorted(
                (self.line(item["loc"]), problem)
                for item, problem in zip(error.errors(), validation_errors(error), strict=True)
            )
        raise UserError("\n".join(f"{self.path}:{line}: {problem}" for line, problem in found))


def read(path: Path, expected: str) -> Document:
    """The file's only document; `expected` is what it should be, for the error messages.

    Raises UserError, in one line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file (UTF-8 YAML is expected)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    node = _single(path, text, expected)
    _refuse_duplicates(path, node)
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a {expected} is expected, not a {type(data).__name__}")
    return Document(path, data, dict(_lines(node)))


def _single(path: Path, text: str, expected: str) -> yaml.Node:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where}: not valid YAML: {what}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    documents = [node for node in documents if node is not None]
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise UserError(f"{path}:{line}: a second document begins here: one {expected} is expected")
    if not documents:
        raise UserError(f"{path}: the file is empty: a {expected} is expected")
    return documents[0]


def _lines(node: yaml.Node, location: Location = ()) -> Iterator[tuple[Location, int]]:
    """(location, line) of every key and item below `node`; lines count from 1."""
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
    """YAML forbids a key twice in a mapping, yet parsers keep the last one without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise UserError(f"{path}:{line}: {key.value} is given twice")
                seen.add(key.value)
            _refuse_duplicates(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(path, value)
