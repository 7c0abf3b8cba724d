"""The operator process: a Lease, watches that feed the queues, and the HTTP endpoints."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from trainyard_api import labels
from trainyard_api.run import PLURAL
from trainyard_api.study import STUDY_PLURAL
from trainyard_operator import reports, server, watch
from trainyard_operator.client import Kube
from trainyard_operator.controller import Controller
from trainyard_operator.errors import ApiError
from trainyard_operator.execute import Executor
from trainyard_operator.feed import Body, Feed, key_of
from trainyard_operator.instruments import Instruments
from trainyard_operator.lease import Lease
from trainyard_operator.observe import Key, Observer
from trainyard_operator.queue import Queue
from trainyard_operator.settings import Settings
from trainyard_operator.studies import StudyController

LEASE = "trainyard-operator"
RESYNC_SECONDS = 120.0
# Neither a watch nor the list has succeeded for this long: start afresh.
SILENT_SECONDS = 600.0
CHANGE_DELAY = 0.1  # a gang's pods change together, as do a study's runs: look once
STUDY_WORKERS = 4

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """This process must end and be started afresh; the message says why."""


class App:
    """One operator process."""

    def __init__(self, settings: Settings, kube: Kube, observer: Observer) -> None:
        self._settings = settings
        self._instruments = told = Instruments()
        runs = Controller(observer, Executor(kube, settings.trainer_image), told)
        studies = StudyController(kube, told)
        self._runs: Queue[Key] = Queue(runs.handle, settings.workers)
        self._studies: Queue[Key] = Queue(studies.handle, STUDY_WORKERS)
        self._queues = (self._runs, self._studies)
        only = settings.namespace
        self._run_feed = Feed(kube, PLURAL, only, self._runs.add, told.seen, told.seen_all)
        self._study_feed = Feed(
            kube, STUDY_PLURAL, only, self._studies.add, told.studies.seen, told.studies.seen_all
        )
        self._feeds = (self._run_feed, self._study_feed)
        told.watch_queue(
            lambda: sum(queue.depth for queue in self._queues),
            lambda: sum(queue.failing for queue in self._queues),
        )
        self._lease = Lease(kube, settings.own_namespace, LEASE, settings.identity)
        self._phases: dict[Key, Any] = {}  # of the runs of studies

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, wait for the Lease, then look after runs and studies until `stop`.

        Raises StoppedError when the Lease is lost or the watch has died, and ApiError when the
        resources aren't there.
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
        for feed in self._feeds:
            await feed.list()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("lease", self._lease.keep()),
                ("runs", self._runs.run()),
                ("studies", self._studies.run()),
                *(("resync", self._resync(feed)) for feed in self._feeds),
            )
        ]
        # kopf takes every task made after it was started for its own: it comes last.
        watching = asyncio.create_task(self._watch(stop), name="watch")
        try:
            done, _ = await asyncio.wait({*tasks, watching}, return_when=asyncio.FIRST_COMPLETED)
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
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _resync(self, feed: Feed) -> None:
        """List all objects of a kind now and then: a watch can die silently."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                untold = await feed.list_again()
            except ApiError as error:
                logger.warning("%s", error)
                continue
            if untold is not None:
                raise StoppedError(f"the watch has died: it never told of {untold}")

    def run_changed(self, body: Body, *, deleted: bool) -> None:
        """A run was made, changed or deleted; its study looks at it when it has moved."""
        self._run_feed.changed(body, deleted=deleted)
        key, meta = key_of(body), body["metadata"]
        study = (meta.get("labels") or {}).get(labels.STUDY)
        if study is None:
            return
        phase = (body.get("status") or {}).get("phase")
        moved = (meta["uid"], meta.get("deletionTimestamp"), phase)
        if deleted or self._phases.get(key) != moved:
            self._studies.add(Key(key.namespace, study), CHANGE_DELAY)
        if deleted:
            self._phases.pop(key, None)
        else:
            self._phases[key] = moved

    def study_changed(self, body: Body, *, deleted: bool) -> None:
        """A study was made, changed or deleted."""
        self._study_feed.changed(body, deleted=deleted)

    def pod_changed(self, body: Any) -> None:
        """A pod of a run was made, changed or deleted."""
        self._run_feed.heard = time.monotonic()
        meta = body["metadata"]
        self._runs.add(Key(meta["namespace"], meta["labels"][labels.RUN]), CHANGE_DELAY)

    async def _watch(self, stop: asyncio.Event) -> None:
        await watch.watch(self, self._settings.namespace, stop)

    def wrong(self) -> str:
        """What is wrong with this process, in one line; empty when nothing is.

        A standby is healthy and ready: it serves, and it waits for the Lease.
        """
        if not self._lease.held:
            return ""
        if any(queue.stalled() for queue in self._queues):
            return "reconciling has stalled"
        heard = max(feed.heard for feed in self._feeds)
        if time.monotonic() - heard > SILENT_SECONDS:
            return "nothing was heard from the API server for too long"
        return ""


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


async def run(settings: Settings) -> None:
    """Connect and run one operator process, until a signal ends it."""
    stop = asyncio.Event()
    watch.stop_on_signals(stop)
    kube = await Kube.connect()
    try:
        async with reports.session() as http:
            await App(settings, kube, Observer(kube, http)).run(stop)
    finally:
        await kube.close()
