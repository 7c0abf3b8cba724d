"""What the ranks of a run on this machine use, from the /metrics of its agents."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from threading import Lock

from prometheus_client.parser import text_string_to_metric_families

from trainyard_api import metrics as names
from trainyard_dashboard.usage import GAUGES, RankUsage

TIMEOUT = 2.0  # seconds
MAX_BYTES = 4 << 20
AT_ONCE = 8
# The agent looks at its ranks every two seconds: over a shorter time CPU use is not exact.
MIN_SECONDS = 8.0
MAX_SECONDS = 60.0
CPU = names.AGENT_CPU_SECONDS.name

Address = tuple[str, int]


class Agents:
    """The agents of local runs. CPU use is known from the second look on. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        # When and how many CPU seconds, by run, attempt and rank.
        self._seen: dict[tuple[str, int, int], deque[tuple[float, float]]] = {}

    def usage(self, run: str, attempt: int, addresses: Sequence[Address]) -> list[RankUsage]:
        """The ranks of the agents at these addresses; none where no agent answers."""
        with ThreadPoolExecutor(min(AT_ONCE, len(addresses)) or 1) as pool:
            texts = list(pool.map(_get, addresses))
        now = self._clock()
        found: dict[int, RankUsage] = {}
        for text in texts:
            for series, rank, value in _samples(text, run):
                usage = found.setdefault(rank, RankUsage(rank=rank))
                if series == CPU:
                    usage.cpu_cores = self._cores((run, attempt, rank), now, value)
                else:
                    setattr(usage, GAUGES[series], value)
        return list(found.values())

    def _cores(self, key: tuple[str, int, int], now: float, seconds: float) -> float | None:
        """The mean over up to a minute; None if that is not known yet."""
        with self._lock:
            for other in [k for k, seen in self._seen.items() if now - seen[-1][0] > MAX_SECONDS]:
                del self._seen[other]
            seen = self._seen.setdefault(key, deque())
            while seen and now - seen[0][0] > MAX_SECONDS:
                seen.popleft()
            seen.append((now, seconds))
            since, before = seen[0]
        return max(0.0, seconds - before) / (now - since) if now - since >= MIN_SECONDS else None


def _samples(text: str, run: str) -> list[tuple[str, int, float]]:
    """Series, rank and value of what this run's agent exports; none of anything else."""
    try:
        return [
            (sample.name, int(sample.labels["rank"]), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            # Another run's agent, or another program, may listen on the port by now.
            if (sample.name == CPU or sample.name in GAUGES)
            and sample.labels.get("run") == run
            and math.isfinite(sample.value)
        ]
    except (ValueError, KeyError):
        return []


def _get(address: Address) -> str:
    """The exposition; empty if nothing answers."""
    connection = HTTPConnection(*address, timeout=TIMEOUT)  # never through a proxy
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read(MAX_BYTES).decode(errors="replace")
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()
