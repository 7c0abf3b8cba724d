"""Expands a matrix into cells: each combination of its values is one valid TrainingRun. Pure.

Every process of every cell gets the same number of threads. Otherwise torchrun would give a single
process all cores and each of several processes just one, and the two could not be compared.
"""

import copy
import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainyard_api.base import validation_errors
from trainyard_api.gpus import whole_gpus
from trainyard_api.pod_template import PodTemplate
from trainyard_api.run import API_VERSION, KIND, TrainingRun
from trainyard_api.spec import CONTAINER, TrainingRunSpec
from trainyard_api.study import MAX_RUNS, STEP_BUDGET, ScalingStudySpec, same
from trainyard_lifecycle.launch import requested_cpus

Location = tuple[str | int, ...]
THREADS_ENV = "OMP_NUM_THREADS"
FIELDS = [str(field.alias or name) for name, field in TrainingRunSpec.model_fields.items()]
NO_RECIPE = "a recipe is required: a command of your own reports no step times"
OWN_CLAIM = (
    "remove claimName: each run of a study gets its own volume, which is deleted with the run"
)


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
    """Why cells are not valid runs, and where in the file the reason is."""

    location: Location  # in the file
    message: str


class MatrixError(Exception):
    """The matrix can't be run; `problems` lists each reason once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


def make_cells(study: ScalingStudySpec, threads: int | None = None) -> list[Cell]:
    """Every cell, in the matrix's order (the last path changes fastest). Raises MatrixError.

    threads: per process, in every cell; None: each process's share of the CPUs that the template
    requests.
    """
    product = math.prod(len(values) for values in study.matrix.values())
    if product > 100 * MAX_RUNS:  # too large even to enumerate
        raise MatrixError([_too_many_runs(study, product)])
    if problems := [*_path_problems(study), *_exclude_problems(study)]:
        raise MatrixError(problems)
    combinations = expand(study)
    if not combinations:
        raise MatrixError([Problem(("exclude",), "exclude leaves no cell to run")])
    if len(combinations) * study.repeats > MAX_RUNS:
        raise MatrixError([_too_many_runs(study, len(combinations))])
    labels = [label(values, study.matrix) for values in combinations]
    runs: list[TrainingRun] = []
    problem_cells: dict[Problem, list[str]] = {}  # the labels of the cells that have it
    for number, (values, text) in enumerate(zip(combinations, labels, strict=True), start=1):
        run = _make_run(study, number, values)
        if isinstance(run, TrainingRun):
            runs.append(run)
        else:
            for problem in run:
                problem_cells.setdefault(problem, []).append(text)
    if problem_cells:
        raise MatrixError(_with_cells(problem_cells, len(labels)))
    return [
        Cell(number, values, text, run, used)
        for number, (values, text, (run, used)) in enumerate(
            zip(combinations, labels, with_same_threads(runs, threads), strict=True), start=1
        )
    ]


def cell_problems(
    study: ScalingStudySpec, cells: Sequence[Cell], found: Sequence[Iterable[tuple[Location, str]]]
) -> list[Problem]:
    """What was `found` to be wrong with each cell's run, said once, where the file has it.

    found: (location in the run, line) for each cell.
    """
    problem_cells: dict[Problem, list[str]] = {}
    for cell, wrong in zip(cells, found, strict=True):
        for location, line in wrong:
            problem = Problem(_origin(location, study), line)
            problem_cells.setdefault(problem, []).append(cell.label)
    return _with_cells(problem_cells, len(cells))


def expand(study: ScalingStudySpec) -> list[dict[str, Any]]:
    """Every combination of the matrix's values that is not excluded."""
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
    """path -> its last part, or the full path where two would be the same."""
    last = {path: path.rpartition(".")[2] for path in paths}
    times = Counter(last.values())
    return {path: name if times[name] == 1 else path for path, name in last.items()}


def varied(matrix: dict[str, list[Any]]) -> list[str]:
    """The paths that differ between cells; all paths if there is only one cell."""
    return [path for path, values in matrix.items() if len(values) > 1] or list(matrix)


def label(values: dict[str, Any], matrix: dict[str, list[Any]]) -> str:
    """`ddp, numProcPerNode=2`: the values that distinguish this cell."""
    names = short_names(matrix)
    parts = []
    for path in varied(matrix):
        value = values[path]
        if value is not None:
            # A string is clear without its path, a number is not.
            parts.append(value if isinstance(value, str) else f"{names[path]}={value_text(value)}")
    return ", ".join(parts) or "the template"


def value_text(value: Any) -> str:
    """A value as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _make_run(
    study: ScalingStudySpec, number: int, values: dict[str, Any]
) -> TrainingRun | list[Problem]:
    """The run of a cell, or why it is not valid."""
    spec = cell_spec(study, values)
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": f"cell-{number}"},
        "spec": spec,
    }
    try:
        # Strict, and from JSON, like a manifest.
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

    All but the training steps is kept short: one evaluation batch and one checkpoint, at the end.
    A failed run is not retried, its size is fixed by the cell, and its volume is deleted with it.
    Each process has its own GPU, if the template requests any.
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
        settings = {}  # a command: it is refused, but not for settings that the user didn't write
    if processes := values.get("numProcPerNode"):
        for resource in _gpus(spec):
            spec["resourcesPerNode"]["limits"][resource] = processes
    chosen = {path: value for path, value in values.items() if value is not None}
    for path, value in (settings | chosen).items():
        put(spec, path, value)
    return spec


def _gpus(spec: dict[str, Any]) -> list[str]:
    resources = spec.get("resourcesPerNode")
    limits = resources.get("limits") if isinstance(resources, dict) else None
    return list(whole_gpus(limits)) if isinstance(limits, dict) else []


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, creating missing mappings."""
    *parents, last = path.split(".")
    for name in parents:
        if spec.get(name) is None:
            spec[name] = {}
        spec = spec[name]
        if not isinstance(spec, dict):
            return  # not a mapping: validation reports it
    spec[last] = copy.deepcopy(value)


def _origin(location: Location, study: ScalingStudySpec) -> Location:
    """Where in the file the value at a cell's `location` comes from: matrix or template."""
    path = ".".join(str(part) for part in location[1:])
    for key in study.matrix:
        if path == key or path.startswith(f"{key}."):
            return ("matrix", key)
    return ("template", *location)


def _with_cells(problem_cells: dict[Problem, list[str]], total: int) -> list[Problem]:
    """Each problem with the name of a cell that has it, unless all cells have it."""
    problems = []
    for problem, cells in problem_cells.items():
        more = f" (and {len(cells) - 1} more)" if len(cells) > 1 else ""
        cell = "" if len(cells) == total else f"cell {cells[0]}{more}: "
        problems.append(Problem(problem.location, cell + problem.message))
    return problems


def _too_many_runs(study: ScalingStudySpec, cells: int) -> Problem:
    text = f"matrix: {cells} cells x {study.repeats} repeats exceed the maximum of {MAX_RUNS} runs"
    return Problem(("matrix",), text)


def _path_problems(study: ScalingStudySpec) -> Iterator[Problem]:
    for path in study.matrix:
        first = path.split(".")[0]
        if path in STEP_BUDGET:
            yield Problem(("matrix", path), f"matrix.{path}: set by steps and warmupSteps")
        elif first not in FIELDS:
            close = difflib.get_close_matches(first, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "recipe settings are config.NAME"
            text = f"matrix.{path}: no such path in a TrainingRun's spec; {hint}"
            yield Problem(("matrix", path), text)


def _exclude_problems(study: ScalingStudySpec) -> Iterator[Problem]:
    for index, entry in enumerate(study.exclude):
        for path, value in entry.items():
            known = study.matrix.get(path)
            if known is None:
                what = f"exclude: {path} is not in the matrix"
            elif not any(same(value, other) for other in known):
                values = ", ".join(map(value_text, known))
                what = f"exclude: {path} is never {value_text(value)} in the matrix, only {values}"
            else:
                continue
            yield Problem(("exclude", index, path), what)


def with_same_threads(
    runs: Sequence[TrainingRun], threads: int | None = None
) -> list[tuple[TrainingRun, int]]:
    """Each run with OMP_NUM_THREADS in its podTemplate, and its value.

    A value set in the podTemplate is kept. threads None divides the CPUs of a node among the
    processes of the run with the most per node; it is 1 where the runs request no CPUs, as none
    are guaranteed then.
    """
    share = threads or max(1, min(map(_cpus_per_process, runs), default=1))
    return [_with_threads(run, share) for run in runs]


def _with_threads(run: TrainingRun, threads: int) -> tuple[TrainingRun, int]:
    pod = run.spec.pod_template or PodTemplate()
    containers: list[dict[str, Any]] = pod.spec.get("containers", [])
    default: dict[str, Any] = {"name": CONTAINER}
    trainer = next((item for item in containers if item["name"] == CONTAINER), default)
    env = trainer.get("env") or []
    for entry in env:
        if entry.get("name") == THREADS_ENV and str(entry.get("value", "")).isdecimal():
            return run, int(entry["value"])
    trainer = {**trainer, "env": [*env, {"name": THREADS_ENV, "value": str(threads)}]}
    others = [item for item in containers if item["name"] != CONTAINER]
    pod = pod.model_copy(update={"spec": {**pod.spec, "containers": [trainer, *others]}})
    spec = run.spec.model_copy(update={"pod_template": pod})
    return run.model_copy(update={"spec": spec}), threads


def _cpus_per_process(run: TrainingRun) -> int:
    return int((requested_cpus(run) or 1) / run.nproc)
