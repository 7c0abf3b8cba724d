"""What share of training time reporting takes, by the clock of the process that trains.

    OMP_NUM_THREADS=1 python -m tests.bench.reporting_share [--repeats 3] [--steps 80]

Everything is on, as in reporting_overhead.py: console and metrics.jsonl every 10 steps, /metrics
and /progress scraped every second, TensorBoard, MLflow at a real server; then again with 5 s on the
way to that server. Counted are the seconds the training thread spends in reporting, and the CPU
seconds of the process's other Python threads (the web server), which hold the same lock. Whole runs
compared with each other differ by a tenth on a shared machine, too much to show one percent.
"""

import argparse
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.reporting_overhead import (
    SHAPE,
    every_second,
    get,
    mlflow_server,
    slow_way,
)
from tests.ports import free_port

RESULT = "BENCH_RESULT"  # the variable that names the file for the child's figures
REPORTING = ("update", "alive", "step_done", "step_timed", "progress", "evaluated", "sampled")


def train() -> None:
    """The child: train, and write how long reporting and the whole loop took."""
    from trainyard_trainer.loop import Loop
    from trainyard_trainer.reporting.reporter import RunReporter

    seconds = {"reporting": 0.0, "loop": 0.0}
    inside = False

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if kind == "reporting" and (inside or threading.current_thread() is not trains):
                return function(*args, **kwargs)
            inside = inside or kind == "reporting"
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[kind] += time.perf_counter() - began
                inside = inside and kind != "reporting"

        return call

    trains = threading.main_thread()
    for name in REPORTING:
        setattr(RunReporter, name, timed("reporting", getattr(RunReporter, name)))
    for name in ("_log", "_report_save"):
        setattr(Loop, name, timed("reporting", getattr(Loop, name)))
    Loop.run = timed("loop", Loop.run)  # type: ignore[method-assign]
    leave = os._exit

    def exit_with_seconds(status: int) -> None:
        threads = {t.native_id for t in threading.enumerate() if t is not trains}
        seconds["threads"] = sum(cpu_seconds(thread) for thread in threads if thread)
        Path(os.environ[RESULT]).write_text(json.dumps(seconds))
        leave(status)

    os._exit = exit_with_seconds  # type: ignore[assignment]
    sys.argv = ["trainyard_trainer"]
    runpy.run_module("trainyard_trainer", run_name="__main__")


def cpu_seconds(thread: int) -> float:
    """User and system time of a thread of this process."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(steps: int, mlflow_port: int) -> dict[str, float]:
    """The child's figures."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "run": "bench",
            "recipe": "char-gpt",
            "config": SHAPE
            | {"corpus": "stdlib", "max_steps": steps, "learning_rate": 3e-3, "log_steps": 10}
            | {"eval_steps": 0, "eval_batches": 1, "sample_tokens": 1}
            | {"report_to": ["mlflow", "tensorboard"]},
            "checkpoint": {"everySteps": steps},
            "runDir": f"{folder}/run",
            "reportPort": port,
        }
        result = Path(folder) / "result.json"
        env = os.environ | {
            "TRAINYARD_JOB": json.dumps(job),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            RESULT: str(result),
        }
        stop = threading.Event()
        urls = [f"http://127.0.0.1:{port}/{path}" for path in ("metrics", "progress")]
        scraper = threading.Thread(
            target=every_second, args=(stop, lambda: [get(url) for url in urls])
        )
        scraper.start()
        try:
            command = [sys.executable, "-m", "tests.bench.reporting_share", "--child"]
            subprocess.run(
                command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        finally:
            stop.set()
            scraper.join()
        found: dict[str, float] = json.loads(result.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train()
        return
    shares: dict[str, list[float]] = {"MLflow answers": [], "MLflow takes 5 s": []}
    with mlflow_server() as server:
        ports = dict(zip(shares, (server, slow_way(server)), strict=True))
        for repeat in range(1, options.repeats + 1):
            for name, port in ports.items():
                found = measured(options.steps, port)
                share = (found["reporting"] + found["threads"]) / found["loop"]
                shares[name].append(share)
                print(
                    f"repeat {repeat}, {name}: training thread {1000 * found['reporting']:.0f} ms,"
                    f" others {1000 * found['threads']:.0f} ms, of {found['loop']:.1f} s:"
                    f" {share:.2%}",
                    flush=True,
                )
    for name, found_shares in shares.items():
        print(f"{name}: median {statistics.median(found_shares):.2%} of training time (aim < 1%)")


if __name__ == "__main__":
    main()
