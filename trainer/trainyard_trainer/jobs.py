"""Reads the job: from the operator's TRAINYARD_JOB, or from a TrainingRun manifest."""

import argparse
import os
from pathlib import Path

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.checkpoint import ATTEMPT_FILE
from trainyard_api.job import JOB_ENV, TrainerJob
from trainyard_api.progress import REPORT_PORT
from trainyard_trainer.errors import ConfigError

USAGE = """\
With torchrun or as one process:  python -m trainyard_trainer MANIFEST.yaml [--run-dir DIR]
The operator passes the job in the environment variable TRAINYARD_JOB instead."""


def read_job(arguments: list[str]) -> TrainerJob:
    """The job of this process, the same on every rank. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="python -m trainyard_trainer",
        description="Train a TrainingRun's recipe in this process group.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("manifest", nargs="?", type=Path, help="a TrainingRun with a recipe")
    parser.add_argument("--run-dir", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument(
        "--report-port",
        type=int,
        default=REPORT_PORT,
        help="port of /progress and /metrics (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.manifest:
        return from_manifest(options.manifest, options.run_dir, options.report_port)
    text = os.environ.get(JOB_ENV)
    if not text:
        raise ConfigError(f"give a manifest, or set {JOB_ENV}; see --help")
    try:
        return TrainerJob.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{JOB_ENV}: {validation_message(error)}") from None


def from_manifest(path: Path, run_dir: Path | None, report_port: int) -> TrainerJob:
    """The next attempt of the run that a YAML file describes."""
    import yaml

    from trainyard_api.run import TrainingRun

    try:
        run = TrainingRun.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {validation_message(error)}") from None
    if not run.spec.recipe:
        raise ConfigError(f"{path}: spec.command is your own script: start it with torchrun")
    directory = run_dir or Path("runs") / run.name
    start = run.spec.start_from
    start_dir = start and (start.path or str(directory.parent / str(start.run)))
    return TrainerJob(
        run=run.name,
        namespace=run.namespace,
        # Every rank reads it before all have joined, and rank 0 writes it after that.
        attempt=last_attempt(directory) + 1,
        recipe=run.spec.recipe,
        config=run.spec.config or {},
        strategy=run.spec.strategy,
        precision=run.spec.precision,
        seed=run.spec.seed,
        checkpoint=run.spec.checkpoint,
        run_dir=str(directory),
        start_from=start,
        start_dir=start_dir,
        report_port=report_port,
        require_gpu=run.asks_for_gpus,
    )


def last_attempt(run_dir: Path) -> int:
    """The newest attempt's number; 0 in a new run."""
    try:
        # The number is the first line; a full disk may have left the file empty.
        number, _, _ = (run_dir / ATTEMPT_FILE).read_text().partition("\n")
        return int(number or 0)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run_dir / ATTEMPT_FILE}: not an attempt number: {error}") from None
