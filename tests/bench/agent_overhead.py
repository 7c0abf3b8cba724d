"""What the agent, its watch for hangs and run.report() cost: step time beside plain torchrun.

    python -m tests.bench.agent_overhead [--repeats 5] [--steps 300] [--width 256]

Two DDP ranks train the same model, in turns under plain torchrun and under the agent, which looks
at them every two seconds. The script reports every step, the operator reads /progress every five
seconds, Prometheus /metrics every fifteen. Compared are medians of the step time on rank 0.
`--dump` also has py-spy read the stacks of both ranks every 5 s, which otherwise happens only where
ranks seem not to work.

Medians of runs differ by more than all this costs, so it is counted, too: the CPU time of the agent
and of the reporter's thread, and the time of the calls of run.report(), as a share of rank 0's
steps. That is what the steps would lose if all of it took the core of rank 0.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import trainyard_agent
from tests.ports import free_port
from trainyard_agent import stacks
from trainyard_agent.hangs import from_wire

AGENT = Path(trainyard_agent.__file__).parent / "__main__.py"
SCRIPT = """
import json, os, sys, threading, time
import torch, torch.distributed as dist
import trainyard

torch.set_num_threads(1)
dist.init_process_group("gloo")
run = trainyard.init()
width = int(sys.argv[3])  # the wider, the longer the steps
blocks = [layer for _ in range(4) for layer in (torch.nn.Linear(width, width), torch.nn.GELU())]
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*blocks))
optimizer = torch.optim.AdamW(model.parameters())
batch = torch.randn(256, width)
steps, times, calls = int(sys.argv[1]), [], []
open(sys.argv[2] + ".began", "w").close()
for step in range(steps):
    began = time.perf_counter()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    called = time.perf_counter()
    run.report(step=step + 1, total=steps, loss=loss, samples=512 * (step + 1))
    now = time.perf_counter()
    times.append(now - began)
    calls.append(now - called)
if dist.get_rank() == 0:
    clocks = [
        time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name == "trainyard"
    ]
    own = {"calls": sum(calls), "thread": sum(clocks), "all": sum(times)}
    with open(sys.argv[2], "w") as file:
        json.dump({"times": times[steps // 10 :], **own}, file)
dist.destroy_process_group()
"""


def measure(
    folder: Path, steps: int, width: int, *, agent: bool, dump: bool
) -> tuple[float, float]:
    """The median step time of one run in seconds, and the share of the steps counted as ours."""
    script, result = folder / "train.py", folder / "times.json"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)]
    command = [*torchrun, str(steps), str(result), str(width)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = threading.Event()
    if agent:
        worker, port = folder / "worker", free_port()
        worker.mkdir()
        environment |= {
            "TRAINYARD_RUN": "mine",
            "TRAINYARD_ATTEMPT": "1",
            "TRAINYARD_REPORT_PORT": str(port),
            "TRAINYARD_HANG_SECONDS": "300",
        }
        lock = os.open(worker / "lock", os.O_RDWR | os.O_CREAT)
        words = [sys.executable, "-I", "-S", str(AGENT), str(worker), str(lock), *command]
        process = subprocess.Popen(words, env=environment, pass_fds=[lock])
        threading.Thread(target=_read, args=(port, ended, dump), daemon=True).start()
    else:
        process = subprocess.Popen(command, env=environment)
    began, start, seconds = Path(f"{result}.began"), 0.0, 0.0
    while process.poll() is None:
        seconds = max(seconds, _cpu_seconds(process.pid))
        if not began.exists():
            start = seconds  # its start is no part of a step
        time.sleep(0.05)
    ended.set()
    found = json.loads(result.read_text())
    counted = seconds - start + found["thread"] + found["calls"] if agent else 0.0
    return statistics.median(found["times"]), counted / found["all"]


def _cpu_seconds(pid: int) -> float:
    """Of the process itself, without its children; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(port: int, ended: threading.Event, dump: bool) -> None:
    """Read what the operator and Prometheus read, as often as they do."""
    seconds = 0
    while not ended.wait(1):
        seconds += 1
        for path, interval in (("/progress", 5), ("/metrics", 15)):
            if seconds % interval:
                continue
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read()
            except OSError:
                continue
        if dump and seconds % 5 == 0:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ranks") as answer:
                for rank in from_wire(json.load(answer)):
                    stacks.read(rank.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dump", action="store_true")
    options = parser.parse_args()
    ratios, shares = [], []
    for number in range(options.repeats):
        seconds = {}
        for agent in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                seconds[agent], share = measure(
                    Path(folder), options.steps, options.width, agent=agent, dump=options.dump
                )
            if agent:
                shares.append(share)
        ratios.append(seconds[True] / seconds[False])
        print(
            f"{number + 1}/{options.repeats}: plain {seconds[False] * 1e3:.3f} ms a step, agent"
            f" {seconds[True] * 1e3:.3f} ms, ratio {ratios[-1]:.4f}; counted {shares[-1]:.3%}",
            flush=True,
        )
    print(
        f"ratio: median {statistics.median(ratios):.4f}, from {min(ratios):.4f} to"
        f" {max(ratios):.4f}; counted: median {statistics.median(shares):.3%}, from"
        f" {min(shares):.3%} to {max(shares):.3%}"
    )


if __name__ == "__main__":
    main()
