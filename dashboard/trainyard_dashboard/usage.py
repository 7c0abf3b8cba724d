"""What the ranks and pods of a run use now; of a large run those with extreme values."""

from collections.abc import Callable, Iterable

from pydantic import BaseModel, Field

from trainyard_api import metrics as names

MAX_RANKS = 16  # shown of one run; of a larger one, the extreme ones
MAX_PODS = 8
EXTREME = 3  # of each kind, in a run with more


class RankUsage(BaseModel):
    """One rank, with the processes that it has started. Unknown values are null."""

    rank: int
    cpu_cores: float | None = None
    memory_bytes: float | None = None
    gpu_utilization: float | None = Field(default=None, description="0 to 1.")
    gpu_memory_bytes: float | None = None
    why: list[str] = Field(
        default_factory=list, description="Why it is among those that are shown: `most memory`."
    )


class PodTraffic(BaseModel):
    """Bytes per second that a pod receives and sends."""

    pod: str
    received: float | None = None
    sent: float | None = None


class RunUsage(BaseModel):
    """All ranks and pods of a small run, and the extreme ones of a large one."""

    ranks: list[RankUsage]
    rank_count: int
    pods: list[PodTraffic] = Field(default_factory=list)
    pod_count: int = 0


# Field of a RankUsage by the series of a gauge.
GAUGES = {
    names.AGENT_MEMORY_BYTES.name: "memory_bytes",
    names.AGENT_GPU_UTILIZATION.name: "gpu_utilization",
    names.AGENT_GPU_MEMORY_BYTES.name: "gpu_memory_bytes",
}
_EXTREMES: tuple[tuple[str, Callable[[RankUsage], float | None], bool], ...] = (
    ("least CPU", lambda rank: rank.cpu_cores, False),
    ("most CPU", lambda rank: rank.cpu_cores, True),
    ("most memory", lambda rank: rank.memory_bytes, True),
    ("least GPU", lambda rank: rank.gpu_utilization, False),
    ("most GPU memory", lambda rank: rank.gpu_memory_bytes, True),
)


def fold(ranks: Iterable[RankUsage], pods: Iterable[PodTraffic] = ()) -> RunUsage | None:
    """What is shown of these ranks and pods; None without a rank."""
    found = sorted(ranks, key=lambda rank: rank.rank)
    traffic = sorted(pods, key=_traffic)
    if not found:
        return None
    shown = found if len(found) <= MAX_RANKS else _extreme(found)
    if len(traffic) > MAX_PODS:
        listed = traffic[:EXTREME] + traffic[-EXTREME:]
    else:
        listed = sorted(traffic, key=lambda pod: pod.pod)
    return RunUsage(ranks=shown, rank_count=len(found), pods=listed, pod_count=len(traffic))


def _extreme(ranks: list[RankUsage]) -> list[RankUsage]:
    """Those with the lowest and highest values, each of which says so."""
    why: dict[int, list[str]] = {}
    for text, value_of, highest in _EXTREMES:
        known = [(value, rank.rank) for rank in ranks if (value := value_of(rank)) is not None]
        for _, rank in sorted(known, reverse=highest)[:EXTREME]:
            why.setdefault(rank, []).append(text)
    return [rank.model_copy(update={"why": why[rank.rank]}) for rank in ranks if rank.rank in why]


def _traffic(pod: PodTraffic) -> float:
    return (pod.received or 0) + (pod.sent or 0)
