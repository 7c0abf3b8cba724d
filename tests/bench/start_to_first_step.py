"""Where the time goes from the start of a process to its first optimizer step.

    python -m tests.bench.start_to_first_step [--repeats 5] [--recipe gpt]

A small model; one process by itself, and rank 0 of two under torchrun. Prints the median of each
phase; the aim is 4 s in all on two cores. What an import takes in detail: python -X importtime -c
"import trainyard_trainer.worker".
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = {
    "python": "interpreter",
    "api": "import pydantic, prometheus-client, the job",
    "torch": "import torch",
    "trainer": "import the rest of the trainer",
    "joined": "meet the other ranks",
    "data": "claim the run, load the data",
    "model": "build model and optimizer",
    "step": "first step",
}


def marked() -> None:
    """Be a rank of the trainer that prints when it got where."""
    from trainyard_trainer.reporting.timing import since_start

    marks = {"python": since_start()}
    import trainyard_trainer.__main__ as program

    marks["api"] = since_start()
    import torch  # noqa: F401

    marks["torch"] = since_start()
    from trainyard_trainer import worker
    from trainyard_trainer.loop import Loop

    marks["trainer"] = since_start()

    def note(owner: Any, name: str, mark: str) -> None:
        """Note when `owner.name` returns for the first time."""
        function: Callable[..., Any] = getattr(owner, name)

        def noted(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            marks.setdefault(mark, since_start())
            if mark == "step" and len(marks) == len(PHASES) and os.environ.get("RANK", "0") == "0":
                print("marks", json.dumps(marks), flush=True)
                marks["printed"] = 0
            return result

        setattr(owner, name, noted)

    note(worker, "_join", "joined")
    note(worker, "_load", "data")
    note(worker, "make_state_files", "model")
    note(Loop, "_train_step", "step")
    sys.argv[1:] = []
    sys.exit(program.main())


def measure(processes: int, recipe: str) -> dict[str, float]:
    """Seconds of each phase; `launcher` is what passed before the process was there."""
    from tests.bench.gpt_job import gpt_job

    with tempfile.TemporaryDirectory() as folder:
        shape = {"block_size": 64, "batch_size": 16, "n_layer": 4, "n_head": 4, "n_embd": 128}
        job = gpt_job(Path(folder), shape | {"max_steps": 2})
        if recipe == "char-gpt":
            config = {"corpus": "stdlib", "eval_batches": 1, "sample_tokens": 1}
            job = job.model_copy(update={"recipe": recipe, "config": shape | config})
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        module = ["-m", "tests.bench.start_to_first_step", "--marked"]
        began = time.time()
        run = subprocess.run(
            [sys.executable, *(launcher if processes == 2 else []), *module],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "TRAINYARD_JOB": job.model_dump_json(by_alias=True)},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            sys.exit(run.stderr)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("marks "))
    marks: dict[str, float] = json.loads(line.removeprefix("marks "))
    moments = [0.0, *(marks[phase] for phase in PHASES)]
    seconds = {phase: b - a for phase, a, b in zip(PHASES, moments, moments[1:], strict=False)}
    return seconds | {"in all": marks["step"], "run": time.time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipe", choices=("gpt", "char-gpt"), default="gpt")
    options = parser.parse_args()
    results: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for processes, runs in results.items():
            runs.append(measure(processes, options.recipe))
    print(f"{options.recipe}: seconds, median of {options.repeats}   alone   rank 0 of 2")
    for phase, label in [*PHASES.items(), ("in all", "start to first step (aim <= 4)")]:
        medians = [statistics.median(run[phase] for run in results[n]) for n in (1, 2)]
        print(f"{label:45} {medians[0]:7.2f} {medians[1]:13.2f}")


if __name__ == "__main__":
    if "--marked" in sys.argv:
        marked()
    main()
