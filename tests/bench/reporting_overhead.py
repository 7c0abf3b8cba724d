"""What reporting costs a step: everything on, beside nothing on, on the CPU char-gpt.

    OMP_NUM_THREADS=1 python tests/bench/reporting_overhead.py [--repeats 5] [--steps 400]

Interleaved, so that a noisy machine is noisy for all:
  off    no line of progress in the measured steps, nobody asks, no tracker;
  on     a line every 10 steps (console and metrics.jsonl), /metrics and /progress scraped every
         second, TensorBoard, and MLflow at a real server on this machine;
  slow   the same, with 5 s on the way of whatever is sent to the MLflow server.
Timed over the second half of the steps, logging and scrapes included. Prints every run, and the
shares of step time by the medians. The server's own CPU time isn't the trainer's, but this machine
must have it: with one process of one thread, a second core.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.ports import free_port

SHAPE = {"batch_size": 32, "block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
DELAY = 5.0  # seconds
MODES = ("off", "on", "slow")


@contextlib.contextmanager
def mlflow_server() -> Iterator[int]:
    """`mlflow server` with a fresh database; its port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers=1"]
    command += ["--host=127.0.0.1", f"--port={port}", "--backend-store-uri=sqlite:///runs.db"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not get(f"http://127.0.0.1:{port}/health"):
                time.sleep(0.5)
            yield port
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            body: bytes = response.read()
            return body
    except OSError:
        return None  # not up yet, or already gone


def slow_way(target: int) -> int:
    """A port that leads to `target`, DELAY later."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, sink: socket.socket, delay: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", target))
            for way in ((client, server, DELAY), (server, client, 0.0)):
                threading.Thread(target=carry, args=way, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def every_second(stop: threading.Event, action: Callable[[], object]) -> None:
    while not stop.wait(1):
        action()


def seconds_per_step(mode: str, steps: int, mlflow_port: int) -> float:
    """Train, and time the second half of the steps."""
    port, half = free_port(), steps // 2
    on = mode != "off"
    with tempfile.TemporaryDirectory() as run_dir:
        job = {
            "run": f"bench-{mode}",
            "recipe": "char-gpt",
            "config": SHAPE
            | {"corpus": "stdlib", "max_steps": steps, "learning_rate": 3e-3}
            | {"eval_steps": 0, "eval_batches": 1, "sample_tokens": 1}
            | {"log_steps": 10 if on else half}
            | {"report_to": ["mlflow", "tensorboard"] if on else []},
            "checkpoint": {"everySteps": steps},
            "runDir": run_dir,
            "reportPort": port,
        }
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TRAINYARD_JOB": json.dumps(job),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
        }
        stop = threading.Event()
        urls = [f"http://127.0.0.1:{port}/{path}" for path in ("metrics", "progress")]
        scraper = threading.Thread(
            target=every_second, args=(stop, lambda: [get(url) for url in urls])
        )
        if on:
            scraper.start()
        try:
            # What it prints is read, as a terminal or a container runtime would.
            subprocess.run(
                [sys.executable, "-m", "trainyard_trainer"],
                env=env,
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        finally:
            stop.set()
            if on:
                scraper.join()
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    times = {r["step"]: r["time"] for r in map(json.loads, lines) if "loss" in r}
    return float((times[steps] - times[half]) / (steps - half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="a multiple of 20")
    options = parser.parse_args()
    results: dict[str, list[float]] = {mode: [] for mode in MODES}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {SHAPE}")
    with mlflow_server() as server:
        ports = {"off": server, "on": server, "slow": slow_way(server)}
        for repeat in range(options.repeats):
            # Every mode comes first, second and last in turn.
            for mode in MODES[repeat % 3 :] + MODES[: repeat % 3]:
                results[mode].append(seconds_per_step(mode, options.steps, ports[mode]))
            shown = ", ".join(f"{mode} {1000 * values[-1]:.2f}" for mode, values in results.items())
            print(f"repeat {repeat + 1}: {shown} ms (load {os.getloadavg()[0]:.1f})", flush=True)
    median = {mode: statistics.median(values) for mode, values in results.items()}
    for mode, values in results.items():
        spread = f"{1000 * min(values):.2f} to {1000 * max(values):.2f}"
        print(f"{mode:5} median {1000 * median[mode]:.2f} ms a step ({spread})")
    for mode in MODES[1:]:
        share = median[mode] / median["off"] - 1
        print(f"reporting, {mode:5} {share:+.2%} of step time (aim < 1%)")


if __name__ == "__main__":
    main()
