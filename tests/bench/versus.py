"""The trainer beside a plain loop: samples or tokens per second, side by side and interleaved.

A benchmark says what its recipe trains on and which script is the plain loop; see
image_throughput.py. All run as one process and as two DDP processes under torchrun, with the same
batch per process and one thread each. The trainer saves checkpoints and is scraped; the plain loop
does nothing but train. Timed from the end of the warm-up steps to the last step. Plain loops that
run at once and know nothing of each other show what the machine's cores are worth together.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.ports import free_port

HERE = Path(__file__).parent
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
LOG_STEPS = 10
PLAIN, TRAINER, APART = "plain loop", "trainer", "plain loops apart"


@dataclass(frozen=True)
class Contest:
    """What all contenders train.

    Attributes:
        recipe, config, precision: the trainer's; batch_size, max_steps and the like are added.
        script: the plain loop, a file beside this one. It takes --steps, --warmup, --batch-size
            (per process) and `arguments`, and prints samples_per_second and loss as JSON.
        rivals: more such scripts, by name; they take --save-every, too.
        tokens_per_sample: where tokens are what counts.
    """

    recipe: str
    config: dict[str, Any]
    precision: str
    script: str
    arguments: Sequence[str]
    rivals: Mapping[str, str] = field(default_factory=dict)
    tokens_per_sample: int | None = None


@dataclass(frozen=True)
class Result:
    """One run: samples per second of all processes, and the last loss it reported."""

    rate: float
    loss: float


def script(
    name: str, contest: Contest, options: argparse.Namespace, processes: int, *more: str
) -> Result:
    """The script's own figures."""
    arguments = [f"--steps={options.steps}", f"--warmup={options.warmup}", *more]
    arguments += [f"--batch-size={options.batch_size}", *contest.arguments]
    output = _python(processes, [str(HERE / name), *arguments], {})
    figures = json.loads(output.strip().splitlines()[-1])
    return Result(figures["samples_per_second"], figures["loss"])


def trainer(contest: Contest, options: argparse.Namespace, processes: int) -> Result:
    """Timed between two lines of its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder, scraped() as port:
        config = contest.config | {
            "batch_size": options.batch_size * processes,
            "max_steps": options.steps,
            "log_steps": LOG_STEPS,
            "eval_steps": 0,
            "eval_batches": 1,
        }
        job = {
            "run": "bench",
            "recipe": contest.recipe,
            "config": config,
            "precision": contest.precision,
            "checkpoint": {"everySteps": options.save_every, "keepLast": 2},
            "runDir": str(Path(folder) / "run"),
            "reportPort": port,
        }
        _python(processes, ["-m", "trainyard_trainer"], {"TRAINYARD_JOB": json.dumps(job)})
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    return result([json.loads(line) for line in lines], options.warmup, config["batch_size"])


def result(history: Sequence[dict[str, Any]], warmup: int, batch_size: int) -> Result:
    """Of a trainer's metrics.jsonl, from the end of the warm-up steps to the last line."""
    logged = {line["step"]: line for line in history if "loss" in line}
    last = max(logged)
    seconds = logged[last]["time"] - logged[warmup]["time"]
    return Result((last - warmup) * batch_size / seconds, logged[last]["loss"])


def _python(processes: int, arguments: list[str], env: dict[str, str]) -> str:
    """What it prints, started by torchrun for more than one process."""
    launcher = [*LAUNCHER, str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, *arguments]
    run = subprocess.run(command, env=ENV | env, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{run.stderr}")
    return run.stdout


@contextlib.contextmanager
def scraped() -> Iterator[int]:
    """A port that is asked, every 5 seconds, what Prometheus and the operator ask a trainer."""
    port = free_port()
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(5):
            for path in ("metrics", "progress"):
                with contextlib.suppress(OSError):  # not up yet, or already gone
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).read()

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        yield port
    finally:
        stop.set()
        scraper.join()


def apart(contest: Contest, options: argparse.Namespace, processes: int) -> Result:
    """The sum of plain loops of one process each, all at once."""
    with ThreadPoolExecutor(processes) as pool:
        loops = [pool.submit(contend, PLAIN, contest, options, 1) for _ in range(processes)]
        results = [loop.result() for loop in loops]
    return Result(sum(result.rate for result in results), results[0].loss)


def contend(name: str, contest: Contest, options: argparse.Namespace, processes: int) -> Result:
    """Run the contender of that name."""
    if name == TRAINER:
        return trainer(contest, options, processes)
    if name == APART:
        return apart(contest, options, processes)
    if name == PLAIN:
        return script(contest.script, contest, options, processes)
    saves = f"--save-every={options.save_every}"
    return script(contest.rivals[name], contest, options, processes, saves)


def parser(description: str, batch_size: int) -> argparse.ArgumentParser:
    """The options every contest has; a benchmark may add its own."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--steps", type=int, default=100, help="a multiple of 10")
    found.add_argument("--warmup", type=int, default=20, help="a multiple of 10")
    found.add_argument("--save-every", type=int, default=50)
    found.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    found.add_argument("--batch-size", type=int, default=batch_size, help="samples per process")
    return found


def run(contest: Contest, options: argparse.Namespace) -> None:
    """Every contender, `repeats` times, interleaved; then the medians and ratios."""
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}; {contest.recipe}, {contest.precision}, {contest.config}")
    unit = "tokens/s" if contest.tokens_per_sample else "samples/s"
    results: dict[tuple[str, int], list[Result]] = {}
    for repeat in range(1, options.repeats + 1):
        for processes in options.processes:
            for name in (PLAIN, *contest.rivals, TRAINER, *([APART] if processes > 1 else [])):
                result = contend(name, contest, options, processes)
                result = replace(result, rate=result.rate * (contest.tokens_per_sample or 1))
                results.setdefault((name, processes), []).append(result)
                print(
                    f"repeat {repeat}: {name} x{processes}: {result.rate:,.1f} {unit},"
                    f" loss {result.loss:.3f} (load {os.getloadavg()[0]:.1f})",
                    flush=True,
                )
    _show(results, unit)


def _show(results: dict[tuple[str, int], list[Result]], unit: str) -> None:
    median = {key: statistics.median(r.rate for r in runs) for key, runs in results.items()}
    table = Table("", "processes", unit, "min to max", "of the plain loop", "last loss")
    for (name, processes), runs in results.items():
        rates = [result.rate for result in runs]
        table.add_row(
            name,
            str(processes),
            f"{median[name, processes]:,.1f}",
            f"{min(rates):,.1f} to {max(rates):,.1f}",
            f"{median[name, processes] / median[PLAIN, processes]:.3f}",
            f"{runs[-1].loss:.3f}",
        )
    Console(width=110).print(table)
    for name, processes in results:
        if name not in (TRAINER, APART):
            ratio = median[TRAINER, processes] / median[name, processes]
            aim = 1.0 if name == PLAIN else 1.1
            print(f"trainer / {name}, {processes} process(es): {ratio:.3f} (aim >= {aim})")
    for name, processes in results:
        if processes == 2 and (one := median.get((PLAIN if name == APART else name, 1))):
            share = median[name, 2] / median[APART, 2]
            print(
                f"1 -> 2 processes, {name}: {median[name, 2] / (2 * one):.1%} of twice one;"
                f" {share:.1%} of two loops apart"
            )
