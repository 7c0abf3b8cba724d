"""`trainyard estimate`: the memory that each rank of a run takes, before anything is started."""

import re
from pathlib import Path
from typing import Any

from trainyard_api.run import KIND
from trainyard_api.study import STUDY_KIND
from trainyard_lifecycle.status import format_bytes, format_count
from trainyard_local.manifest import load_run, read
from trainyard_local.preflight import ask_trainer, require_extra
from trainyard_local.store import UserError

# MiB as nvidia-smi shows them.
GPUS = {
    "T4": 15360,
    "V100-16GB": 16384,
    "A10G": 23028,
    "L4": 23034,
    "RTX4090": 24564,
    "V100-32GB": 32768,
    "A100-40GB": 40960,
    "L40S": 46068,
    "H100-80GB": 81559,
    "A100-80GB": 81920,
    "H100-NVL-94GB": 95830,
    "H200-141GB": 143771,
    "B200-180GB": 183359,
}
PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "logits": "logits and loss",
}
BUFFERS = {"ddp": "DDP's gradient buckets", "fsdp": "FSDP's gathered parameters and buffers"}
EXIT_TOO_LARGE = 1


def estimate(path: Path, gpu: str | None, memory: str | None) -> int:
    """Print the estimate; 1 if it doesn't fit. Raises UserError."""
    if read(path, KIND).data.get("kind") == STUDY_KIND:
        raise UserError(
            f"{path}: the memory of a TrainingRun can be estimated, not of a ScalingStudy: write a"
            " TrainingRun with the values of its largest cell"
        )
    run = load_run(path)
    if run.spec.recipe is None:
        raise UserError(f"{path}: the memory of a recipe can be estimated, not of a command")
    available = _memory(gpu, memory)
    require_extra("trainer", "trainyard estimate")
    asked = {
        "recipe": run.spec.recipe,
        "config": run.spec.config or {},
        "strategy": run.spec.strategy,
        "precision": run.spec.precision,
        "processes": run.spec.num_nodes * run.nproc,
        "memory": available,
    }
    found = ask_trainer("estimate", asked, str(path))
    total = sum(found["parts"].values())
    ranks = format_count(run.spec.num_nodes * run.nproc, "rank")
    print(
        f"{run.name}: memory of each rank at the peak of a training step"
        f" ({ranks}, {run.spec.strategy}, {run.spec.precision},"
        f" {format_count(found['micro_batch'], 'sample')} at a time)"
    )
    names = PARTS | {"communication": BUFFERS[run.spec.strategy]}
    rows = [(names[part], size) for part, size in found["parts"].items() if size]
    print(_table([*rows, ("total", total)]))
    if found["compiled"]:
        print("compile: true is estimated as false; compiled steps usually take less")
    if found["memory"] is None:
        print("no GPU found: name one with --gpu, or its memory with --memory, to see if it fits")
        return 0
    return _print_fit(gpu or found["gpu"] or memory or "", total, found)


def _print_fit(name: str, total: int, found: dict[str, Any]) -> int:
    """Print whether it fits, and what to change if not; the exit status."""
    beside = found["beside"]
    what = (
        f"{format_bytes(total)} and about {format_bytes(beside)} for the CUDA context, NCCL and"
        f" fragmentation; {name} has {format_bytes(found['memory'])}"
    )
    if total + beside <= found["memory"]:
        print(f"fits: {what}")
        return 0
    print(f"does not fit: {what}")
    fitting = [
        (
            each["change"],
            each["total"],
            "fits" if each["total"] + beside <= found["memory"] else "does not fit",
        )
        for each in found["advice"]
    ]
    if fitting:
        print("what helps, with the total that it gives:")
        print(_table(fitting))
    if not any(remark == "fits" for *_, remark in fitting):
        print("no change of settings makes it fit: take a smaller model, or GPUs with more memory")
    return EXIT_TOO_LARGE


def _table(rows: list[Any]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        f"  {name:<{width}}  {format_bytes(size):>10}" + "".join(f"  {each}" for each in remark)
        for name, size, *remark in rows
    )


def _memory(gpu: str | None, memory: str | None) -> int | None:
    """The bytes of the GPU that the options name; None if they name none."""
    if gpu is not None:
        by_name = {name.lower(): size for name, size in GPUS.items()}
        if gpu.lower() not in by_name:
            raise UserError(
                f"--gpu: {gpu} is unknown; known: {', '.join(GPUS)}; or give its memory with"
                " --memory 80GiB"
            )
        return by_name[gpu.lower()] * 2**20
    if memory is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B?", memory)
    if not match:
        raise UserError(f"--memory: {memory} is no amount of memory; write for example 80GiB")
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** {"M": 2, "G": 3}[unit])
