"""What the operator learns beside the objects of a run: lost nodes, and rank 0's report."""

import asyncio
import json
import time
from datetime import datetime

import aiohttp

from trainyard_api.base import parse_known
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
        self._lost: dict[str, datetime] = {}
        self._fresh_until = float("-inf")
        self._lock = asyncio.Lock()

    async def lost_hosts(self) -> dict[str, datetime]:
        """Names of the nodes that the control plane has lost, and since when."""
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._lost, seconds = await self._read()
                self._fresh_until = time.monotonic() + seconds
            return self._lost

    async def _read(self) -> tuple[dict[str, datetime], float]:
        """Lost nodes, and for how many seconds that is good."""
        try:
            # Version 0: the API server may answer from its cache, which spares etcd.
            nodes = await self._kube.list_all(path_of("v1", "nodes"), resourceVersion="0")
        except ApiError as error:
            # A namespaced role doesn't see nodes. Their pods then count as lost when the control
            # plane marks them for deletion, some seconds later.
            return {}, FORBIDDEN_SECONDS if error.status == 403 else NODES_SECONDS
        return find_lost_hosts(nodes), NODES_SECONDS


def session() -> aiohttp.ClientSession:
    """A session that connects to pods directly, whatever proxy the environment names."""
    return aiohttp.ClientSession(timeout=REPORT_TIMEOUT, trust_env=False)


async def fetch_report(
    http: aiohttp.ClientSession, address: str, port: int = REPORT_PORT
) -> tuple[ProgressReport | None, str]:
    """The report from rank 0's pod; without one, why there is none, in one line.

    That line is empty where an agent answers to which nothing has been reported yet.
    """
    host = f"[{address}]" if ":" in address else address
    blocked = (
        f"no connection to {host}:{port}: allow ingress to the run's pods on port {port} from the"
        " operator's namespace (NetworkPolicy, or an exception from strict mTLS)"
    )
    try:
        async with http.get(f"http://{host}:{port}/progress", allow_redirects=False) as answer:
            if answer.status == 404:
                return None, ""
            if answer.status == 504:
                return None, f"rank 0 does not answer the agent at {host}:{port}"
            if answer.status != 200:
                return None, f"{host}:{port} answers with HTTP {answer.status}"
            body = await answer.content.readexactly(MAX_REPORT_BYTES)  # a report is far shorter
    except asyncio.IncompleteReadError as short:
        body = short.partial
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None, blocked
    report = parse_report(body)
    return report, "" if report else f"{host}:{port} answers, but not with a report"


def parse_report(body: bytes) -> ProgressReport | None:
    """A report of a trainer that may be newer than us: what we don't know is dropped."""
    try:
        return parse_known(ProgressReport, json.loads(body))
    except ValueError:
        return None
