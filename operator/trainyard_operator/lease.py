"""Leader election by a Lease: of several operators one acts, and it stops before another starts.

As in client-go, other replicas' clocks are never compared with ours: a Lease has expired when it
hasn't changed for its whole duration by our own monotonic clock. The official package's leader
election measures with the wall clock, lets a request outlast the renew deadline, and never gives
the Lease back.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime

from trainyard_operator.client import ApiError, Kube, Object, path_of

LEASE_SECONDS = 30
# A leader that could not renew for this long stops; less than the above, and more than a node that
# is starved of CPU needs.
RENEW_DEADLINE_SECONDS = 20.0
RETRY_SECONDS = 2.0

_API = "coordination.k8s.io/v1"

logger = logging.getLogger(__name__)


class Lease:
    """One candidate's view of the Lease `name`."""

    def __init__(self, kube: Kube, namespace: str, name: str, identity: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: Object | None = None
        self._seen_at = 0.0
        self.held = False

    async def acquire(self) -> None:
        """Wait until we are the leader."""
        logged = False
        while not await self._try():
            if self._holder() and not logged:
                logger.info("waiting for the lease held by %s", self._holder())
                logged = True
            await asyncio.sleep(RETRY_SECONDS)
        self.held = True
        logger.info("leading as %s", self._identity)

    async def keep(self) -> None:
        """Renew the Lease; returns with `held` false once it is lost or can't be renewed."""
        renewed = time.monotonic()
        while True:
            left = renewed + RENEW_DEADLINE_SECONDS - time.monotonic()
            if left <= 0:
                self.held = False
                return
            started = time.monotonic()
            try:
                async with asyncio.timeout(left):
                    if await self._try():
                        renewed = started
                    elif self._holder() not in ("", self._identity):
                        self.held = False
                        return
            except TimeoutError:
                continue
            await asyncio.sleep(RETRY_SECONDS)

    async def release(self) -> None:
        """Give the Lease back if it is ours, so that a successor needn't wait until it expires."""
        self.held = False
        try:
            # Read it again: our last write may have been accepted although it was cancelled here.
            lease = await self._kube.find(self._path())
            if lease is None or lease["spec"].get("holderIdentity") != self._identity:
                return
            spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._kube.replace(self._path(), {**lease, "spec": spec})
        except ApiError as error:
            logger.warning("lease not released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the Lease; False if another candidate holds it or the API server fails."""
        try:
            return await self._take(await self._kube.find(self._path()))
        except ApiError as error:
            if error.reason != "Conflict":
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _take(self, lease: Object | None) -> bool:
        now = time.monotonic()
        if lease is None:
            body = self._lease({"metadata": {"name": self._name}, "spec": {}})
            created = await self._kube.create(path_of(_API, "leases", self._namespace), body)
            if created is None:
                return False
            self._seen, self._seen_at = created, now
            return True
        if self._seen is None or self._seen["spec"] != lease["spec"]:
            self._seen, self._seen_at = lease, now
        holder = self._holder()
        duration = lease["spec"].get("leaseDurationSeconds") or LEASE_SECONDS
        if holder not in ("", self._identity) and now - self._seen_at < duration:
            return False
        self._seen = await self._kube.replace(self._path(), self._lease(lease))
        self._seen_at = now
        return True

    def _lease(self, lease: Object) -> Object:
        """`lease` as ours from now on."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease["spec"])
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = (spec.get("leaseTransitions") or 0) + 1
        spec |= {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }
        return {**lease, "apiVersion": _API, "kind": "Lease", "spec": spec}

    def _holder(self) -> str:
        return str(((self._seen or {}).get("spec") or {}).get("holderIdentity") or "")

    def _path(self) -> str:
        return path_of(_API, "leases", self._namespace, self._name)
