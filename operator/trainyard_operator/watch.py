"""Watches of runs, pods and studies, and what they put into the queues. kopf does the watching."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import kopf

from trainyard_api import labels
from trainyard_api.run import API_VERSION, GROUP, PLURAL, VERSION
from trainyard_api.study import STUDY_PLURAL
from trainyard_operator.client import Kube, path_of
from trainyard_operator.objects import ObjectKey

Body = Mapping[str, Any]


class Series(Protocol):
    """The metrics of one kind of object."""

    def update(self, key: ObjectKey, body: Body | None) -> None: ...

    def replace_all(self, bodies: Mapping[ObjectKey, Body]) -> None: ...


class Informer:
    """Lists and watches one kind: queues objects that need a reconcile, and notices a dead watch.

    kopf doesn't notice when a watch silently stops delivering events; comparing what it delivered
    with what is listed shows it.
    """

    def __init__(
        self,
        kube: Kube,
        plural: str,
        namespace: str,
        add: Callable[[ObjectKey], None],
        series: Series,
    ) -> None:
        """
        namespace: the only one to look after; empty: all.
        add: queues an object.
        series: gets every version of every object.
        """
        self._kube = kube
        self._path = path_of(API_VERSION, plural, namespace or None)
        self._add = add
        self._series = series
        self._watched: dict[ObjectKey, str] = {}  # resourceVersion of each, by the watch
        self._wanted: dict[ObjectKey, tuple[Any, ...]] = {}  # what a user may change, likewise
        self._listed: dict[ObjectKey, str] = {}  # resourceVersion of each, by the newest list
        self.last_contact = time.monotonic()

    async def list(self) -> None:
        """List all objects and queue each."""
        items = await self._kube.list_all(self._path)
        self.last_contact = time.monotonic()
        bodies = {key_of(item): item for item in items}
        self._series.replace_all(bodies)
        self._listed = {key: item["metadata"]["resourceVersion"] for key, item in bodies.items()}
        for key in bodies:
            self._add(key)

    async def resync(self) -> ObjectKey | None:
        """List again; returns an object that proves the watch stale, if there is one.

        It hasn't changed since the previous list, and the watch never delivered that version.
        """
        before, watched = self._listed, dict(self._watched)
        await self.list()
        for key, version in self._listed.items():
            # A newer version may have been delivered while the list was read.
            if version == before.get(key) and version not in (
                watched.get(key),
                self._watched.get(key),
            ):
                return key
        return None

    def on_event(self, body: Body, *, deleted: bool) -> None:
        """The watch delivered an object that was created, changed or deleted."""
        self.last_contact = time.monotonic()
        key, meta = key_of(body), body["metadata"]
        self._series.update(key, None if deleted else body)
        retry = (meta.get("annotations") or {}).get(labels.RETRY)
        wanted = (meta["uid"], meta.get("generation"), meta.get("deletionTimestamp"), retry)
        # Our own status writes come back as events, too: answering them would never end.
        if deleted or wanted != self._wanted.get(key):
            self._add(key)
        if deleted:
            self._watched.pop(key, None)
            self._wanted.pop(key, None)
        else:
            self._watched[key], self._wanted[key] = meta["resourceVersion"], wanted


def key_of(item: Body) -> ObjectKey:
    """The key of a stored object."""
    return ObjectKey(item["metadata"]["namespace"], item["metadata"]["name"])


class EventHandler(Protocol):
    """Gets every event of the watches."""

    def on_run(self, body: Body, *, deleted: bool) -> None: ...

    def on_study(self, body: Body, *, deleted: bool) -> None: ...

    def on_pod(self, body: Body) -> None: ...


async def watch(handler: EventHandler, namespace: str, stop: asyncio.Event) -> None:
    """Watch runs, their pods and studies (in `namespace`, if given) until `stop`.

    The handlers are coroutines, because kopf runs plain functions in threads.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def run_event(event: Any, body: Any, **_: Any) -> None:
        handler.on_run(body, deleted=event["type"] == "DELETED")

    @kopf.on.event(GROUP, VERSION, STUDY_PLURAL, registry=registry)
    async def study_event(event: Any, body: Any, **_: Any) -> None:
        handler.on_study(body, deleted=event["type"] == "DELETED")

    @kopf.on.event("", "v1", "pods", labels={labels.RUN: kopf.PRESENT}, registry=registry)
    async def pod_event(body: Any, **_: Any) -> None:
        handler.on_pod(body)

    started = asyncio.Event()
    signals = asyncio.create_task(_take_signals_back(started, stop), name="signals")
    await kopf.operator(
        registry=registry,
        settings=_kopf_settings(),
        standalone=True,
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
        stop_flag=stop,
        ready_flag=started,
    )
    signals.cancel()


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our Events are part of the plan
    settings.scanning.disabled = True  # needs rights on CRDs and namespaces, and we use neither
    settings.watching.server_timeout = 270
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    settings.watching.label_selectors["v1", "pods"] = labels.RUN
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.queueing.worker_limit = 50
    settings.queueing.idle_timeout = 1.0
    settings.execution.max_workers = 1
    return settings


def stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set `stop`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _take_signals_back(started: asyncio.Event, stop: asyncio.Event) -> None:
    """kopf installs its own signal handlers when it starts; but we have more to stop than kopf."""
    await started.wait()
    stop_on_signals(stop)
