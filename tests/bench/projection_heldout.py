"""How well a study's law predicts sizes that it has not seen: fit on some sizes, compare the rest.

    python -m tests.bench.projection_heldout

Larger sizes than this machine has cores are simulated: a process's work in a step is a sleep, which
takes no core, as a GPU's computing takes none; what the processes do together is real, an
all-reduce of gradients by gloo over the loopback interface. The sizes take turns, `--repeats`
times. Then for each set of sizes to learn from: the laws, what they say of the larger ones, what
was measured there, the error, and whether the median lies in the interval. In brackets: a middle
that the product would not name, as the interval is too wide.

    python -m tests.bench.projection_heldout --study study.json

takes the measurements of a study instead.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from trainyard_api.study import ScalingStudy
from trainyard_local.workers import free_ports
from trainyard_study.fit import fit

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
WORK_SECONDS = 0.02  # of each process in each step
GRADIENTS = 250_000  # floats, all-reduced in each step
WARM_UP = 5
SAMPLES = 8  # of each process in each step: throughput then reads like a trainer's


def step_seconds(processes: int, steps: int) -> float:
    """The mean step of this many processes in lock-step, as rank 0 sees it."""
    context = multiprocessing.get_context("fork")  # torch is imported once, not once per process
    found: Queue[float] = context.Queue()
    (port,) = free_ports(1)
    workers = [
        context.Process(target=_work, args=(rank, processes, port, steps, found))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    seconds = found.get(timeout=120)
    for worker in workers:
        worker.join()
    return seconds


def _work(rank: int, processes: int, port: int, steps: int, found: "Queue[float]") -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    gradients = torch.ones(GRADIENTS)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            dist.barrier()
            began = time.perf_counter()
        time.sleep(WORK_SECONDS)
        dist.all_reduce(gradients)
    if rank == 0:
        found.put((time.perf_counter() - began) / steps)
    dist.barrier()
    dist.destroy_process_group()


def measure(sizes: Sequence[int], repeats: int, steps: int) -> dict[int, list[float]]:
    """Samples per second of each size, one per repeat."""
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(repeats):
        for size in sizes:
            rates[size].append(SAMPLES * size / step_seconds(size, steps))
        print(f"repeat {repeat + 1} of {repeats} done", file=sys.stderr, flush=True)
    return rates


def of_study(path: Path) -> dict[int, list[float]]:
    """Throughputs by size, of a study that measured one configuration."""
    study = ScalingStudy.model_validate(json.loads(path.read_text()))
    if len(study.status.curves) != 1:
        raise SystemExit(f"{path}: a study of one configuration is needed")
    return {
        cell.processes: [found.samples_per_second for found in cell.measurements]
        for cell in study.status.cells
        if cell.measurements
    }


def report(rates: dict[int, list[float]]) -> None:
    """Learn from the smallest two, three, ... sizes; each time foretell the rest."""
    sizes = sorted(rates)
    base = statistics.median(rates[sizes[0]])
    print("size        samples/s   efficiency")
    for size in sizes:
        median, low, high = statistics.median(rates[size]), min(rates[size]), max(rates[size])
        share = median / base * sizes[0] / size
        print(f"{size:4}  {median:8.0f} ({low:.0f}-{high:.0f})  {share:6.0%}")
    inside = total = 0
    errors: dict[str, list[float]] = {"named": [], "unnamed": []}
    for count in range(2, len(sizes)):
        learnt, held_out = sizes[:count], sizes[count:]
        law = fit({size: rates[size] for size in learnt})
        name = ", ".join(map(str, learnt))
        print(f"\nlearnt from {name}: {law.choice}, residual {law.residual:.1%}")
        for size in held_out:
            projected, truth = law.throughput(size), statistics.median(rates[size])
            covered = projected.low <= truth <= projected.high
            inside, total = inside + covered, total + 1
            error = projected.value / truth - 1
            errors["unnamed" if projected.too_wide else "named"].append(abs(error))
            middle = f"[{projected.value:.0f}]" if projected.too_wide else f"{projected.value:.0f}"
            print(
                f"  {size:4}  projected {middle:>8} ({projected.low:.0f}-{projected.high:.0f})"
                f"  measured {truth:8.0f}  error {error:+6.1%}"
                f"  {'inside' if covered else 'OUTSIDE'} ({size / learnt[-1]:.1f}x the largest)"
            )
    print(f"\nthe 90% interval covers {inside} of {total} held-out medians")
    for which, found in errors.items():
        if found:
            print(
                f"middles {which}: {len(found)}, error {min(found):.0%} to {max(found):.0%},"
                f" median {statistics.median(found):.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="a study.json instead of a simulation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if args.study:
        report(of_study(args.study))
        return
    import torch  # noqa: F401  # before the forks

    report(measure(SIZES, args.repeats, args.steps))


if __name__ == "__main__":
    main()
