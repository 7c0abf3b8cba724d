"""A matrix becomes cells: each combination of its values is one valid TrainingRun. Pure."""

import copy
import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainyard_api.base import validation_errors
from trainyard_api.run import API_VERSION, KIND, TrainingRun
from trainyard_api.spec import GPU, TrainingRunSpec
from trainyard_api.study import MAX_RUNS, STEP_BUDGET, ScalingStudySpec, same
from trainyard_study.threads import with_same_threads

Location = tuple[str | int, ...]
FIELDS = [str(field.alias or name) for name, field in TrainingRunSpec.model_fields.items()]
NO_RECIPE = "a recipe is needed: a command of your own reports no step times"
OWN_CLAIM = "leave claimName out: each run of a study gets a volume of its own, and it goes with it"


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix: its values by path, and the run they make of the template."""

    number: int  # from 1
    values: dict[str, Any]
    label: str
    run: TrainingRun  # its name is the cell's
    threads: int  # of each process

    @property
    def processes(self) -> int:
        """Ranks of the run."""
        return self.run.spec.num_nodes * self.run.nproc


@dataclass(frozen=True)
class Problem:
    """Something about the file that keeps cells from being valid runs."""

    location: Location  # in the file
    message: str


class MatrixError(Exception):
    """The matrix can't be run; `problems` has every reason once."""

    def __init__(self, found: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in found))
        self.problems = found


def make_cells(study: ScalingStudySpec, threads: int | None = None) -> list[Cell]:
    """Every cell, in the matrix's order (the last path changes fastest). Raises MatrixError.

    threads: of every process in every cell; None: a share of the CPUs that the template asks for.
    """
    if too_many := _too_many(study):
        raise MatrixError([too_many])
    if found := [*_wrong_paths(study), *_wrong_exclusions(study)]:
        raise MatrixError(found)
    combinations = expand(study)
    if not combinations:
        raise MatrixError([Problem(("exclude",), "exclude leaves no cell to run")])
    if len(combinations) * study.repeats > MAX_RUNS:
        raise MatrixError([_runs(study, len(combinations))])
    labels = [label(values, study.matrix) for values in combinations]
    runs: list[TrainingRun] = []
    wrong: dict[Problem, list[str]] = {}  # and the cells it is wrong in
    for number, (values, text) in enumerate(zip(combinations, labels, strict=True), start=1):
        run = _run(study, number, values)
        if isinstance(run, TrainingRun):
            runs.append(run)
        else:
            for problem in run:
                wrong.setdefault(problem, []).append(text)
    if wrong:
        raise MatrixError([_naming(cell, where, len(labels)) for cell, where in wrong.items()])
    return [
        Cell(number, values, text, run, used)
        for number, (values, text, (run, used)) in enumerate(
            zip(combinations, labels, with_same_threads(runs, threads), strict=True), start=1
        )
    ]


def expand(study: ScalingStudySpec) -> list[dict[str, Any]]:
    """Every combination of the matrix's values that isn't excluded."""
    every = itertools.product(*study.matrix.values())
    combinations = [dict(zip(study.matrix, values, strict=True)) for values in every]
    return [
        values
        for values in combinations
        if not any(
            all(same(values[path], value) for path, value in entry.items())
            for entry in study.exclude
        )
    ]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """path -> its last part, or the whole path where two would read the same."""
    last = {path: path.rpartition(".")[2] for path in paths}
    times = Counter(last.values())
    return {path: name if times[name] == 1 else path for path, name in last.items()}


def varied(matrix: dict[str, list[Any]]) -> list[str]:
    """The paths that tell the cells apart; all of them if there is just one cell."""
    return [path for path, values in matrix.items() if len(values) > 1] or list(matrix)


def label(values: dict[str, Any], matrix: dict[str, list[Any]]) -> str:
    """`ddp, numProcPerNode=2`: what tells this cell from the others."""
    names = short_names(matrix)
    parts = []
    for path in varied(matrix):
        value = values[path]  # a word speaks for itself, a number doesn't
        if value is not None:
            parts.append(value if isinstance(value, str) else f"{names[path]}={value_text(value)}")
    return ", ".join(parts) or "the template"


def value_text(value: Any) -> str:
    """A value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _run(
    study: ScalingStudySpec, number: int, values: dict[str, Any]
) -> TrainingRun | list[Problem]:
    """The run of a cell, or why there is none."""
    spec = cell_spec(study, values)
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": f"cell-{number}"},
        "spec": spec,
    }
    try:
        # From JSON and strictly, as a manifest.
        run = TrainingRun.model_validate_json(json.dumps(manifest, default=str), strict=True)
    except ValidationError as error:
        return [
            Problem(_origin(item["loc"], study), text)
            for item, text in zip(error.errors(), validation_errors(error), strict=True)
        ]
    if run.spec.recipe is None:
        return [Problem(("template", "spec", "command"), NO_RECIPE)]
    if run.spec.storage and run.spec.storage.claim_name:
        return [Problem(("template", "spec", "storage", "claimName"), OWN_CLAIM)]
    return run


def cell_spec(study: ScalingStudySpec, values: dict[str, Any]) -> dict[str, Any]:
    """The template's spec as a cell runs it.

    What isn't a training step is kept short: one evaluation batch and one checkpoint, at the end.
    A run that fails is not tried again, its size is what the cell says, and its volume goes with
    it. Each process has a GPU of its own, where the template has any.
    """
    spec = copy.deepcopy(study.template.spec)
    for name in ("elastic", "ttlSecondsAfterFinished", "suspend"):
        spec.pop(name, None)
    if isinstance(storage := spec.get("storage"), dict) and "claimName" not in storage:
        storage["whenDeleted"] = "Delete"
    steps = study.warmup_steps + study.steps
    settings: dict[str, Any] = {
        "maxRestarts": 0,
        "checkpoint.everySteps": steps,
        "config.eval_on_start": False,
        "config.eval_steps": 0,
        "config.eval_batches": 1,
        "config.sample_steps": 0,
        "config.max_steps": steps,
        "config.timing_warmup_steps": study.warmup_steps,
    }
    if isinstance(config := spec.get("config"), dict):
        config.pop("num_epochs", None)
    if spec.get("recipe") is None and "recipe" not in values:
        settings = {}  # a command: refused, but not for settings that the user didn't write
    if (processes := values.get("numProcPerNode")) and _has_gpus(spec):
        spec["resourcesPerNode"]["limits"][GPU] = processes
    chosen = {path: value for path, value in values.items() if value is not None}
    for path, value in (settings | chosen).items():
        put(spec, path, value)
    return spec


def _has_gpus(spec: dict[str, Any]) -> bool:
    resources = spec.get("resourcesPerNode")
    limits = resources.get("limits") if isinstance(resources, dict) else None
    return isinstance(limits, dict) and GPU in limits


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, making the mappings on the way."""
    *parents, last = path.split(".")
    for name in parents:
        if spec.get(name) is None:
            spec[name] = {}
        spec = spec[name]
        if not isinstance(spec, dict):
            return  # wrong in itself, and told as such
    spec[last] = copy.deepcopy(value)


def _origin(location: Location, study: ScalingStudySpec) -> Location:
    """Where in the file a cell's `location` comes from: the matrix or the template."""
    path = ".".join(str(part) for part in location[1:])
    for key in study.matrix:
        if path == key or path.startswith(f"{key}."):
            return ("matrix", key)
    return ("template", *location)


def _naming(problem: Problem, cells: list[str], total: int) -> Problem:
    """The problem with the cell that has it, unless all have."""
    if len(cells) == total:
        return problem
    more = f" (and {len(cells) - 1} more)" if len(cells) > 1 else ""
    return Problem(problem.location, f"cell {cells[0]}{more}: {problem.message}")


def _too_many(study: ScalingStudySpec) -> Problem | None:
    """A matrix too large even to be written out."""
    product = math.prod(len(values) for values in study.matrix.values())
    return _runs(study, product) if product > 100 * MAX_RUNS else None


def _runs(study: ScalingStudySpec, cells: int) -> Problem:
    text = f"matrix: {cells} cells x {study.repeats} repeats are more than {MAX_RUNS} runs"
    return Problem(("matrix",), text)


def _wrong_paths(study: ScalingStudySpec) -> Iterator[Problem]:
    for path in study.matrix:
        first = path.split(".")[0]
        if path in STEP_BUDGET:
            yield Problem(("matrix", path), f"matrix.{path}: steps and warmupSteps set it")
        elif first not in FIELDS:
            close = difflib.get_close_matches(first, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "a recipe's settings are config.NAME"
            text = f"matrix.{path}: no such path in a TrainingRun's spec; {hint}"
            yield Problem(("matrix", path), text)


def _wrong_exclusions(study: ScalingStudySpec) -> Iterator[Problem]:
    for index, entry in enumerate(study.exclude):
        for path, value in entry.items():
            known = study.matrix.get(path)
            if known is None:
                what = f"exclude: {path} is not in the matrix"
            elif not any(same(value, other) for other in known):
                values = ", ".join(map(value_text, known))
                what = f"exclude: {path} is never {value_text(value)}, only {values}"
            else:
                continue
            yield Problem(("exclude", index, path), what)
