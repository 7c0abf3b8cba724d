"""What a checkpoint every 50 steps costs GPT-2 124M with AdamW: 1.5 GB a save.

    python -m tests.bench.checkpoint_stall [--strategy ddp] [--steps 170] [--every 50]

One process. On a CPU the sequences are short, or the steps would take minutes; a step is then a
little over a second, which makes a save weigh more than on a GPU with a real batch. Each save is
described by two figures: how long it held training up (from the trainer's own metric), and how much
slower the steps were while it was being written. The first save is left out: it
allocates its memory. Prints one line per save, and the share of step time that saving takes.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, sys
os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as the trainer's own start does
from trainyard_api.job import TrainerJob
from trainyard_trainer.reporting.http_report import ReportServer
from trainyard_trainer.worker import work

job = TrainerJob.model_validate_json(sys.stdin.read())
reporter = ReportServer(job, 1)
observe = type(reporter.metrics.checkpoint_block).observe

def observe_and_print(histogram, seconds):
    if histogram is reporter.metrics.checkpoint_block:
        print("blocked for", seconds, flush=True)
    observe(histogram, seconds)

type(reporter.metrics.checkpoint_block).observe = observe_and_print
work(job, reporter, 0)
"""


@dataclass(frozen=True)
class Save:
    """One checkpoint, as training felt it."""

    step: int
    blocked: float  # seconds
    written: float  # seconds from its beginning until it counted


def train(options: argparse.Namespace, folder: Path) -> tuple[dict[int, float], list[Save]]:
    """When each step was logged, and the saves."""
    from tests.bench.gpt_job import GPT2_SHAPE, gpt_job

    job = gpt_job(
        folder,
        GPT2_SHAPE
        | {"block_size": options.block_size, "batch_size": options.batch_size}
        | {"max_steps": options.steps, "log_steps": 1, "warmup_steps": 10},
        strategy=options.strategy,
        checkpoint={"everySteps": options.every, "keepLast": 1, "keepBest": False},
    )
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=job.model_dump_json(by_alias=True),
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if run.returncode:
        sys.exit(run.returncode)
    blocked = [float(seconds) for seconds in re.findall(r"blocked for (\S+)", run.stdout)]
    saved = re.findall(r"checkpoint of step (\d+) saved in (\S+) s", run.stdout)
    saves = [
        Save(int(step), seconds, float(written))
        for (step, written), seconds in zip(saved, blocked, strict=True)
    ]
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {line["step"]: line["time"] for line in records if "loss" in line}, saves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--block-size", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times, saves = train(options, Path(folder))
    seconds = {step: times[step] - times[step - 1] for step in times if step - 1 in times}
    disturbed: dict[int, Save] = {}
    for save in saves:
        over = times[save.step] + save.written
        disturbed |= {s: save for s in seconds if s > save.step and times[s - 1] < over}
    undisturbed = [t for s, t in seconds.items() if s > 5 and s not in disturbed]
    if not undisturbed:
        sys.exit("a save was being written in every step; take more steps between them")
    quiet = statistics.median(undisturbed)
    print(f"strategy {options.strategy}: {quiet:.2f} s a step, of {len(seconds)}")
    counted = [save for save in saves[1:] if save.step < options.steps]
    shares = []
    for save in counted:
        during = [seconds[step] for step, other in disturbed.items() if other is save]
        lost = sum(during) - quiet * len(during)
        shares.append(lost / (quiet * options.every))
        print(
            f"save of step {save.step}: training held up {save.blocked * 1000:.0f} ms; written in"
            f" {save.written:.1f} s, its {len(during)} steps took {lost:+.2f} s longer in all"
        )
    if not counted:
        sys.exit("no save to count: the first and the last don't; take more steps")
    blocked = statistics.median(save.blocked for save in counted)
    share = statistics.median(shares)
    print(f"held up: median {blocked * 1000:.0f} ms a save (aim < 300 ms)")
    print(f"lost: {share:.2%} of step time with a save every {options.every} steps (aim < 2%)")


if __name__ == "__main__":
    main()
