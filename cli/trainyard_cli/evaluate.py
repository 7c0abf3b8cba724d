"""`trainyard evaluate`: scores of a run's model by lm-evaluation-harness, kept beside the model."""

import logging
import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.table import Table

from trainyard_api.scores import TaskScores
from trainyard_cli.serve import GENERATE, app_of_model, choose_model
from trainyard_local.preflight import require_extra
from trainyard_local.store import RunDir, UserError
from trainyard_storage.checkpoints import digest
from trainyard_storage.scores import add_scores, scores_file

HARNESS = "lm-eval"  # its distribution's name
BOOTSTRAPS = 1000  # samplings for the standard errors that have no formula


def evaluate(
    run_dir: RunDir, tasks: list[str], model: str, limit: int | None, batch_size: int
) -> int:
    """Score a model on tasks; prints the scores and keeps them. Raises UserError.

    tasks: YAML files, or names of the harness's own tasks.
    model: last, best or the number of a step.
    limit: samples of each task; None: all.
    """
    require_extra("evaluate", "trainyard evaluate")
    directory, manifest = choose_model(run_dir, model)
    if app_of_model(directory) is not GENERATE:
        raise UserError(
            f"{run_dir.name}: the harness scores models that generate text; of this one"
            " `trainyard describe` shows what training has measured"
        )
    chosen = [_task(name) for name in tasks]
    identity = digest(directory)  # before: it may be replaced meanwhile
    print(f"{run_dir.name}: scoring the model of step {manifest.step}", flush=True)
    found = _results(_score(directory, chosen, limit, batch_size), complete=limit is None)
    harness = f"{HARNESS} {version(HARNESS)}"
    target = scores_file(directory)
    target.parent.mkdir(exist_ok=True)  # for the lock
    with FileLock(target.with_name(f".{target.name}.lock")):
        path = add_scores(directory, manifest.step, identity, harness, found)
    _print(found)
    print(f"kept in {path}")
    if limit is not None:
        print(
            f"only {limit} samples of each task: scores of all samples stay, and no requirement of"
            " a server is met by these"
        )
    return 0


def _task(name: str) -> str:
    """A task as the harness takes it. Raises UserError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return name
    if not path.is_file():
        raise UserError(f"--task {name}: no such file")
    return str(path.resolve())


def _score(directory: Path, tasks: list[str], limit: int | None, batch_size: int) -> dict[str, Any]:
    """The harness's own results. Raises UserError: what it refuses is the task's or the data's."""
    print("loading the harness", flush=True)  # its import takes seconds
    import torch
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=any(not task.startswith("/") for task in tasks))
    arguments = {"pretrained": str(directory), "dtype": "auto"} | _prefix(directory)
    try:
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=list(tasks),
            task_manager=manager,
            batch_size=batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            limit=limit,
            log_samples=False,
            bootstrap_iters=BOOTSTRAPS,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
        raise UserError(f"lm-evaluation-harness failed: {message}") from error
    assert results is not None  # only ranks other than 0 get None
    return dict(results)


def _prefix(directory: Path) -> dict[str, int]:
    """What texts are scored after, where the tokenizer has no token for the beginning of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return {}
    newline = tokenizer.encode("\n", add_special_tokens=False)
    token = newline[0] if len(newline) == 1 else 0
    print(
        "the tokenizer has no token that begins a text: texts are scored after"
        f" {tokenizer.decode([token])!r}",
        flush=True,
    )
    return {"prefix_token_id": token}


def _results(results: dict[str, Any], *, complete: bool) -> dict[str, TaskScores]:
    """By task. The harness names a metric `acc,none`, its error `acc_stderr,none`."""
    found = {}
    for task, values in results["results"].items():
        metrics, errors = {}, {}
        for key, value in values.items():
            metric, _, choice = key.partition(",")
            if not isinstance(value, int | float) or not choice or not math.isfinite(value):
                continue
            name = metric if choice == "none" else f"{metric}/{choice}"
            if metric.endswith("_stderr"):
                errors[name.replace("_stderr", "", 1)] = float(value)
            else:
                metrics[name] = float(value)
        samples = results["n-samples"].get(task, {}).get("effective", 0)
        tasks_own = str(results["versions"].get(task, ""))
        found[task] = TaskScores(
            metrics=metrics,
            errors=errors,
            samples=samples,
            complete=complete,
            version=tasks_own,
            time=datetime.now(UTC),
        )
    return found


def _print(found: dict[str, TaskScores]) -> None:
    table = Table("metric", "score", "standard error", "samples", box=None, pad_edge=False)
    for task, scores in found.items():
        for metric, value in scores.metrics.items():
            error = scores.errors.get(metric)
            shown = "" if error is None else f"{error:.4f}"
            table.add_row(f"{task}/{metric}", f"{value:.4f}", shown, str(scores.samples))
    Console(width=100, highlight=False).print(table)
