"""Scores of models on disk: one JSON file for each model of a run; see trainyard_api.scores."""

import json
from pathlib import Path

from pydantic import ValidationError

from trainyard_api.scores import SCORES, Scores, TaskScores
from trainyard_storage.files import write_text_atomic


def scores_file(model: Path) -> Path:
    """The file with the scores of RUN/models/step-00000500."""
    model = model.absolute()  # it may be the current directory
    return model.parent.parent / SCORES / f"{model.name}.json"


def parse_scores(text: str | bytes, digest: str) -> Scores | None:
    """The scores of the model with this digest; None if the file isn't about that one."""
    try:
        scores = Scores.model_validate_json(text)
    except ValidationError:
        return None
    return scores if scores.digest == digest else None


def read_scores(model: Path, digest: str) -> Scores | None:
    """The scores of a model; None if it has none. Raises OSError."""
    try:
        return parse_scores(scores_file(model).read_bytes(), digest)
    except FileNotFoundError:
        return None


def add_scores(
    model: Path, step: int, digest: str, harness: str, tasks: dict[str, TaskScores]
) -> Path:
    """Add tasks to a model's scores, or replace those of the same name; returns the file.

    Scores of a part of the samples do not replace those of all: a server may require them. The
    caller holds a lock. Raises OSError.
    """
    known = read_scores(model, digest)
    merged = dict(known.tasks) if known else {}
    for name, found in tasks.items():
        if found.complete or name not in merged or not merged[name].complete:
            merged[name] = found
    scores = Scores(step=step, digest=digest, harness=harness, tasks=merged)
    path = scores_file(model)
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, json.dumps(scores.to_wire(), indent=1, sort_keys=True) + "\n")
    return path
