"""Prometheus' text format, and the series in it, which trainyard_api.metrics defines, too."""

from __future__ import annotations

from typing import Mapping, Sequence

# Name: kind and help. Names, kinds and labels are those of the trainer, where it has the same.
SERIES = {
    "trainyard_attempt": ("gauge", "Number of the attempt, from 1."),
    "trainyard_step": ("gauge", "Optimizer steps done."),
    "trainyard_total_steps": ("gauge", "Optimizer steps requested."),
    "trainyard_loss": ("gauge", "Training loss of the newest logged step."),
    "trainyard_eval_loss": ("gauge", "Newest evaluation loss."),
    "trainyard_evaluation": ("gauge", "Newest evaluation, by metric."),
    "trainyard_learning_rate": ("gauge", "Learning rate."),
    "trainyard_grad_norm": ("gauge", "Gradient norm before clipping."),
    "trainyard_tokens_per_second": ("gauge", "Tokens per second, all ranks."),
    "trainyard_samples_per_second": ("gauge", "Samples per second, all ranks."),
    "trainyard_world_size": ("gauge", "Ranks in the process group."),
    "trainyard_agent_rank_cpu_seconds_total": (
        "counter",
        "CPU time of a rank and the processes that it has started.",
    ),
    "trainyard_agent_rank_memory_bytes": (
        "gauge",
        "Resident memory of a rank and the processes that it has started.",
    ),
    "trainyard_agent_rank_gpu_utilization_ratio": (
        "gauge",
        "Share of time in which a kernel ran on the rank's GPU. Also high while it waits in NCCL.",
    ),
    "trainyard_agent_rank_gpu_memory_bytes": ("gauge", "Memory in use on the rank's GPU."),
    "trainyard_agent_network_receive_bytes_total": ("counter", "Bytes that the pod has received."),
    "trainyard_agent_network_transmit_bytes_total": ("counter", "Bytes that the pod has sent."),
}
Samples = Sequence["tuple[Mapping[str, str], float]"]  # labels, and the value


def family(name: str, samples: Samples) -> str:
    """All samples of one series; nothing where there are none."""
    if not samples:
        return ""
    kind, text = SERIES[name]
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        named = ",".join(f"{label}={_quoted(word)}" for label, word in labels.items())
        lines.append(f"{name}{{{named}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    """A label's value."""
    escaped = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'
