"""What the ranks of this node use, in Prometheus' text format."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from trainyard_agent.exposition import family
from trainyard_agent.gpus import Gpu

CPU = "trainyard_agent_rank_cpu_seconds_total"
MEMORY = "trainyard_agent_rank_memory_bytes"
GPU_UTILIZATION = "trainyard_agent_rank_gpu_utilization_ratio"
GPU_MEMORY = "trainyard_agent_rank_gpu_memory_bytes"
RECEIVED = "trainyard_agent_network_receive_bytes_total"
SENT = "trainyard_agent_network_transmit_bytes_total"
MAX_RANKS = 64  # of one node, as numProcPerNode allows


class RankUsage(NamedTuple):
    """What one rank, with the processes that it has started, uses.

    Attributes:
        cpu_seconds: since its start; of processes that have ended as far as it waited for them.
        memory: resident bytes.
        gpu: None without one.
        peak: most bytes seen: of its GPU, else resident.
    """

    rank: int
    cpu_seconds: float
    memory: int
    gpu: Gpu | None = None
    peak: int = 0

    def to_wire(self) -> dict[str, Any]:
        return {**self._asdict(), "gpu": self.gpu._asdict() if self.gpu else None}


def from_wire(document: Any) -> list[RankUsage]:
    """The usages in another agent's answer; none if it has none, or is not an agent's."""
    listed = document.get("usages") if isinstance(document, dict) else None
    try:
        return [_usage(entry) for entry in (listed or [])[:MAX_RANKS]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return []


def _usage(entry: Any) -> RankUsage:
    gpu = entry["gpu"]
    seconds = float(entry["cpu_seconds"])
    if gpu is not None:
        utilization, active = float(gpu["utilization"]), float(gpu["memory_active"])
        gpu = Gpu(utilization, active, int(gpu["memory"]))
    if not all(map(math.isfinite, (seconds, *(gpu or ())))):
        raise ValueError("not finite")
    rank, memory, peak = (int(entry[name]) for name in ("rank", "memory", "peak"))
    return RankUsage(rank, seconds, memory, gpu, peak)


def exposition(run: str, usages: Sequence[RankUsage]) -> str:
    """The series of /metrics; network traffic only in a pod, which has a network of its own."""
    shown = [({"run": run, "rank": str(each.rank)}, each) for each in usages[:MAX_RANKS]]
    with_gpu = [(labels, each.gpu) for labels, each in shown if each.gpu]
    text = (
        family(CPU, [(labels, each.cpu_seconds) for labels, each in shown])
        + family(MEMORY, [(labels, each.memory) for labels, each in shown])
        + family(GPU_UTILIZATION, [(labels, gpu.utilization) for labels, gpu in with_gpu])
        + family(GPU_MEMORY, [(labels, gpu.memory) for labels, gpu in with_gpu])
    )
    if "TRAINYARD_TERMINATION_LOG" in os.environ:
        for name, value in zip((RECEIVED, SENT), network()):
            text += family(name, [({"run": run}, value)])
    return text


def network() -> tuple[int, int]:
    """Bytes received and sent by this network namespace, without its loopback device."""
    received = sent = 0
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
            device, _, counters = line.partition(":")
            if device.strip() != "lo":
                fields = counters.split()
                received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent
