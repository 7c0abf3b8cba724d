"""What the operator learns beside the objects of a run: lost nodes, and rank 0's report."""

import asyncio
import json
import time
from typing import Any

import aiohttp
from pydantic import ValidationError

from trainyard_api.progress import REPORT_PORT, ProgressReport
from trainyard_operator.client import ApiError, Kube, path_of
from trainyard_operator.pods import find_lost_hosts

NODES_SECONDS = 5.0  # how long one list of nodes serves all runs
FORBIDDEN_SECONDS = 300.0
REPORT_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
MAX_REPORT_BYTES = 256 * 1024


class NodeList:
    """The cluster's nodes, as far as we may see them; read once for all runs."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._lost: frozenset[str] = frozenset()
        self._fresh_until = float("-inf")
        self._lock = asyncio.Lock()

    async def lost_hosts(self) -> frozenset[str]:
        """Names of the nodes that the control plane has lost."""
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._lost, seconds = await self._read()
                self._fresh_until = time.monotonic() + seconds
            return self._lost

    async def _read(self) -> tuple[frozenset[str], float]:
        """Lost nodes, and for how many seconds that is good."""
        try:
            # Version 0: the API server may answer from its cache, which spares etcd.
            nodes = await self._kube.list_all(path_of("v1", "nodes"), resourceVersion="0")
        except ApiError as error:
            # A namespaced role doesn't see nodes. Their pods then count as lost when the control
            # plane marks them for deletion, some seconds later.
            return frozenset(), FORBIDDEN_SECONDS if error.status == 403 else NODES_SECONDS
        return find_lost_hosts(nodes), NODES_SECONDS


def session() -> aiohttp.ClientSession:
    """A session that connects to pods directly, whatever proxy the environment names."""
    return aiohttp.ClientSession(timeout=REPORT_TIMEOUT, trust_env=False)


async def fetch_report(
    http: aiohttp.ClientSession, address: str, port: int = REPORT_PORT
) -> ProgressReport | None:
    """Rank 0's report from its pod; None while there is none that can be read."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with http.get(f"http://{host}:{port}/progress", allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            body = await answer.content.readexactly(MAX_REPORT_BYTES)  # a report is far shorter
    except asyncio.IncompleteReadError as short:
        return parse_report(short.partial)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None
    return parse_report(body)


def parse_report(body: bytes) -> ProgressReport | None:
    """A report of a trainer that may be newer than us: keys we don't know are dropped."""
    try:
        report: dict[str, Any] = json.loads(body)
        names = {field.alias for field in ProgressReport.model_fields.values()}
        known = {key: value for key, value in report.items() if key in names}
        return ProgressReport.model_validate(known)
    except (ValueError, ValidationError, AttributeError):
        return None
