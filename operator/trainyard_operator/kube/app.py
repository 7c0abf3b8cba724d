"""The operator process: a Lease, kopf's watches that feed the queue, and the HTTP endpoints."""

import asyncio
import contextlib
import logging
import signal
import time
from typing import Any

import kopf

from trainyard_api import labels
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_operator.kube import reports, server
from trainyard_operator.kube.client import Kube
from trainyard_operator.kube.controller import Controller, key_of
from trainyard_operator.kube.errors import ApiError
from trainyard_operator.kube.execute import Executor
from trainyard_operator.kube.instruments import Instruments
from trainyard_operator.kube.lease import Lease
from trainyard_operator.kube.observe import Key, Observer
from trainyard_operator.kube.queue import Queue
from trainyard_operator.kube.settings import Settings

LEASE = "trainyard-operator"
RESYNC_SECONDS = 120.0
# Neither a watch nor the list has succeeded for this long: start afresh.
SILENT_SECONDS = 600.0
POD_EVENT_DELAY = 0.1  # a gang's pods change together: look once

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """This process must end and be started afresh; the message says why."""


class App:
    """One operator process."""

    def __init__(self, settings: Settings, kube: Kube, observer: Observer) -> None:
        self._settings = settings
        self._instruments = Instruments()
        executor = Executor(kube, settings.trainer_image)
        self._controller = Controller(kube, observer, executor, self._instruments)
        self._queue: Queue[Key] = Queue(self._controller.handle, settings.workers)
        self._instruments.watch_queue(lambda: self._queue.depth, lambda: self._queue.failing)
        self._lease = Lease(kube, settings.own_namespace, LEASE, settings.identity)
        self._heard = time.monotonic()
        self._watched: dict[Key, str] = {}  # resourceVersion of each run, as the watch told it
        self._wanted: dict[Key, tuple[Any, ...]] = {}  # what a user may change, likewise

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, wait for the Lease, then look after runs until `stop`.

        Raises StoppedError when the Lease is lost or the watch has died, and ApiError when the
        TrainingRun resource isn't there.
        """
        app = server.application(self.wrong, self.wrong, self._instruments.registry)
        async with server.serve(app, self._settings.host, self._settings.port):
            try:
                if await _unless(stop, self._lease.acquire()):
                    self._instruments.leader.set(1)
                    await _unless(stop, self._lead(stop))
            finally:
                self._instruments.leader.set(0)
                await self._lease.release()

    async def _lead(self, stop: asyncio.Event) -> None:
        listed = await self._list()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("lease", self._lease.keep()),
                ("queue", self._queue.run()),
                ("resync", self._resync(listed)),
            )
        ]
        # kopf takes every task made after it was started for its own: it comes last.
        watch = asyncio.create_task(self._watch(stop), name="watch")
        try:
            done, _ = await asyncio.wait({*tasks, watch}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not self._lease.held:
                raise StoppedError("the lease was lost: another replica may lead by now")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Nothing is decided here any more: a successor may start while kopf takes its time.
            await self._lease.release()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _list(self) -> dict[Key, str]:
        """List all runs and have each looked at; their resource versions."""
        listed = await self._controller.list_runs(self._settings.namespace)
        self._heard = time.monotonic()
        for key in listed:
            self._queue.add(key)
        return listed

    async def _resync(self, before: dict[Key, str]) -> None:
        """List all runs now and then: a watch can die silently.

        A run that hasn't changed since the list before, in a version that the watch never told
        us about, proves that it has.
        """
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                listed = await self._list()
            except ApiError as error:
                logger.warning("runs can't be listed: %s", error)
                continue
            for key, version in listed.items():
                if version == before.get(key) and version != self._watched.get(key):
                    raise StoppedError(f"the watch has died: it never told of {key}")
            before = listed

    def run_changed(self, body: Any, *, deleted: bool) -> None:
        """A run was made, changed or deleted."""
        self._heard = time.monotonic()
        key, meta = key_of(body), body["metadata"]
        self._instruments.seen(key, None if deleted else body)
        wanted = (meta["uid"], meta.get("generation"), meta.get("deletionTimestamp"))
        # Our own status comes back as an event too: answering it would never end.
        if deleted or wanted != self._wanted.get(key):
            self._queue.add(key)
        if deleted:
            self._watched.pop(key, None)
            self._wanted.pop(key, None)
        else:
            self._watched[key], self._wanted[key] = meta["resourceVersion"], wanted

    def pod_changed(self, body: Any) -> None:
        """A pod of a run was made, changed or deleted."""
        self._heard = time.monotonic()
        meta = body["metadata"]
        self._queue.add(Key(meta["namespace"], meta["labels"][labels.RUN]), POD_EVENT_DELAY)

    async def _watch(self, stop: asyncio.Event) -> None:
        """kopf's part: watch runs and their pods, and put what changed into the queue.

        The handlers are coroutines, because kopf runs plain functions in threads.
        """
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def run_event(event: Any, body: Any, **_: Any) -> None:
            self.run_changed(body, deleted=event["type"] == "DELETED")

        @kopf.on.event("", "v1", "pods", labels={labels.RUN: kopf.PRESENT}, registry=registry)
        async def pod_event(body: Any, **_: Any) -> None:
            self.pod_changed(body)

        namespace = self._settings.namespace
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

    def wrong(self) -> str:
        """What is wrong with this process, in one line; empty when nothing is.

        A standby is healthy and ready: it serves, and it waits for the Lease.
        """
        if not self._lease.held:
            return ""
        if self._queue.stalled():
            return "reconciling has stalled"
        if time.monotonic() - self._heard > SILENT_SECONDS:
            return "nothing was heard from the API server for too long"
        return ""


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # our events are part of the Plan
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


async def _unless(stop: asyncio.Event, work: Any) -> bool:
    """Await `work`, or cancel it when `stop` is set; True when it was done."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        stopped.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(task, return_exceptions=True)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set `stop`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _take_signals_back(started: asyncio.Event, stop: asyncio.Event) -> None:
    """kopf takes signals for itself when it starts; but we have more to stop than it."""
    await started.wait()
    stop_on_signals(stop)


async def run(settings: Settings) -> None:
    """Connect and run one operator process, until a signal ends it."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    kube = await Kube.connect()
    try:
        async with reports.session() as http:
            await App(settings, kube, Observer(kube, http)).run(stop)
    finally:
        await kube.close()
