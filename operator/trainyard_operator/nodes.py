"""Which nodes of the cluster are lost: one list, shared by all runs for a few seconds."""

import asyncio
import time
from collections.abc import Iterable

from trainyard_operator.client import Kube, Object, path_of
from trainyard_operator.errors import ApiError

LIST_SECONDS = 5.0
FORBIDDEN_SECONDS = 300.0


class Nodes:
    """The cluster's nodes, as far as we may see them."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._lost: frozenset[str] = frozenset()
        self._fresh_until = float("-inf")
        self._lock = asyncio.Lock()

    async def lost(self) -> frozenset[str]:
        """Names of the nodes that the control plane has lost."""
        async with self._lock:
            if time.monotonic() >= self._fresh_until:
                self._lost, seconds = await self._ask()
                self._fresh_until = time.monotonic() + seconds
            return self._lost

    async def _ask(self) -> tuple[frozenset[str], float]:
        """Lost nodes, and for how many seconds that is good."""
        try:
            # Version 0: the API server may answer from its cache, which spares etcd.
            nodes = await self._kube.list_all(path_of("v1", "nodes"), resourceVersion="0")
        except ApiError as error:
            # A namespaced role doesn't see nodes. Their pods then count as lost when the control
            # plane marks them for deletion, some seconds later.
            return frozenset(), FORBIDDEN_SECONDS if error.status == 403 else LIST_SECONDS
        return lost_hosts(nodes), LIST_SECONDS


def lost_hosts(nodes: Iterable[Object]) -> frozenset[str]:
    """Nodes whose heartbeats have stopped for as long as the control plane allows.

    A node that itself says it isn't ready is alive, and so may its pods be. When no node at all
    is heard, it is the control plane that is cut off: nobody is declared lost then.
    """
    heard: dict[str, bool] = {}
    for node in nodes:
        conditions = (node.get("status") or {}).get("conditions") or []
        ready: Object = next((item for item in conditions if item.get("type") == "Ready"), {})
        heard[node["metadata"]["name"]] = ready.get("status") != "Unknown"
    if not any(heard.values()):
        return frozenset()
    return frozenset(name for name, is_heard in heard.items() if not is_heard)
