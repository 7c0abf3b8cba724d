"""Tokens per second of the trainer, with reports and checkpoints on, beside a plain loop.

    python tests/bench/trainer_throughput.py [--repeats 5] [--steps 200]

Runs, interleaved so that a noisy machine is noisy for all: plain_loop.py; the trainer as one
process; the trainer as two processes under torchrun with the same global batch. One thread per
process. Timed from the end of the warm-up steps to the last step, saves and scrapes included;
start-up is not. Prints every run and the medians' ratios.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
SHAPE = {"batch_size": 32, "block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def plain(steps: int, warmup: int) -> float:
    """Tokens per second of the plain loop."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items()]
    options += [f"--steps={steps}", f"--warmup={warmup}"]
    command = [sys.executable, str(HERE / "plain_loop.py"), *options]
    out = subprocess.run(command, env=ENV, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out)["tokens_per_second"])


def trainer(steps: int, warmup: int, processes: int, save_every: int) -> float:
    """Tokens per second of the trainer, between two lines of its metrics.jsonl."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as run_dir:
        job = {
            "run": "bench",
            "recipe": "char-gpt",
            "config": SHAPE
            | {"corpus": "stdlib", "max_steps": steps, "learning_rate": 3e-3}
            | {"eval_steps": 0, "eval_batches": 1, "log_steps": 10, "sample_tokens": 1},
            "checkpoint": {"everySteps": save_every, "keepLast": 2},
            "runDir": run_dir,
            "reportPort": port,
        }
        command = ["-m", "trainyard_trainer"]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            command = [*launcher, f"--nproc-per-node={processes}", *command]
        stop = threading.Event()
        scraper = threading.Thread(target=scrape, args=(port, stop))
        scraper.start()
        try:
            subprocess.run(
                [sys.executable, *command],
                env=ENV | {"TRAINYARD_JOB": json.dumps(job)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
        finally:
            stop.set()
            scraper.join()
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    times = {r["step"]: r["time"] for r in map(json.loads, lines) if "loss" in r}
    tokens = (steps - warmup) * SHAPE["batch_size"] * SHAPE["block_size"]
    return float(tokens / (times[steps] - times[warmup]))


def scrape(port: int, stop: threading.Event) -> None:
    """What Prometheus and the operator do to a running trainer, every 5 seconds."""
    while not stop.wait(5):
        for path in ("metrics", "progress"):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).read()
            except OSError:
                continue  # not up yet, or already gone


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=50)
    options = parser.parse_args()
    steps, warmup = options.steps, options.warmup
    results: dict[str, list[float]] = {"plain": [], "trainer x1": [], "trainer x2": []}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {SHAPE}")
    for repeat in range(options.repeats):
        results["plain"].append(plain(steps, warmup))
        results["trainer x1"].append(trainer(steps, warmup, 1, options.save_every))
        results["trainer x2"].append(trainer(steps, warmup, 2, options.save_every))
        shown = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in results.items())
        print(f"repeat {repeat + 1}: {shown} tokens/s (load {os.getloadavg()[0]:.1f})", flush=True)
    median = {name: statistics.median(values) for name, values in results.items()}
    for name, value in median.items():
        spread = f"{min(results[name]):,.0f} to {max(results[name]):,.0f}"
        print(f"{name:11} median {value:>8,.0f} tokens/s ({spread})")
    print(f"trainer x1 / plain      {median['trainer x1'] / median['plain']:.3f} (aim >= 0.95)")
    print(f"trainer x2 / trainer x1 {median['trainer x2'] / median['trainer x1']:.3f} (aim >= 1.7)")


if __name__ == "__main__":
    main()
