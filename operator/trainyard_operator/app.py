"""The operator process: a Lease, watches that fill the queues, and the HTTP endpoints."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from trainyard_api import labels
from trainyard_api.run import PLURAL
from trainyard_api.study import STUDY_PLURAL
from trainyard_operator import probes
from trainyard_operator.client import ApiError, Kube
from trainyard_operator.controller import Controller
from trainyard_operator.lease import Lease
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.queue import Queue
from trainyard_operator.runs import RunReconciler
from trainyard_operator.settings import Settings
from trainyard_operator.studies import StudyReconciler
from trainyard_operator.watch import Body, Informer, key_of, stop_on_signals, watch

LEASE = "trainyard-operator"
RESYNC_SECONDS = 120.0
# Without contact to the API server (by watch or list) for this long the process is unhealthy.
SILENT_SECONDS = 600.0
CHANGE_DELAY = 0.1  # a gang's pods change together, as do a study's runs: reconcile once
STUDY_WORKERS = 4

logger = logging.getLogger(__name__)


class FatalError(Exception):
    """This process must exit and be restarted; the message says why."""


class App:
    """One operator process."""

    def __init__(self, settings: Settings, kube: Kube, http: aiohttp.ClientSession) -> None:
        """http: for the reports of runs (see probes.session)."""
        self._settings = settings
        self._metrics = metrics = OperatorMetrics()
        images = Images(settings.trainer_image, settings.agent_image)
        run_reconciler = RunReconciler(kube, http, images, metrics)
        runs = Controller(kube, run_reconciler, metrics)
        studies = Controller(kube, StudyReconciler(kube), metrics)
        self._runs: Queue[ObjectKey] = Queue(runs.reconcile, settings.workers)
        self._studies: Queue[ObjectKey] = Queue(studies.reconcile, STUDY_WORKERS)
        self._queues = (self._runs, self._studies)
        namespace = settings.namespace
        self._run_informer = Informer(kube, PLURAL, namespace, self._runs.add, metrics.runs)
        self._study_informer = Informer(
            kube, STUDY_PLURAL, namespace, self._studies.add, metrics.studies
        )
        self._informers = (self._run_informer, self._study_informer)
        metrics.watch_queues(
            lambda: sum(queue.depth for queue in self._queues),
            lambda: sum(queue.failing for queue in self._queues),
        )
        self._lease = Lease(kube, settings.own_namespace, LEASE, settings.identity)
        self._study_runs: dict[ObjectKey, Any] = {}  # uid, deletion and phase of studies' runs

    async def run(self, stop: asyncio.Event) -> None:
        """Serve, wait for the Lease, then reconcile runs and studies until `stop`.

        Raises FatalError when the Lease is lost or a watch is stale, and ApiError when the CRDs
        aren't installed.
        """
        app = http_app(self.problem, self.problem, self._metrics.registry)
        async with serve(app, self._settings.host, self._settings.port):
            try:
                if await _unless(stop, self._lease.acquire()):
                    self._metrics.leader.set(1)
                    await _unless(stop, self._lead(stop))
            finally:
                self._metrics.leader.set(0)
                await self._lease.release()

    async def _lead(self, stop: asyncio.Event) -> None:
        for informer in self._informers:
            await informer.list()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("lease", self._lease.keep()),
                ("runs", self._runs.run()),
                ("studies", self._studies.run()),
                *(("resync", self._resync(informer)) for informer in self._informers),
            )
        ]
        # kopf takes every task created after it was started for its own: it comes last.
        watching = asyncio.create_task(self._watch(stop), name="watch")
        try:
            done, _ = await asyncio.wait({*tasks, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not self._lease.held:
                raise FatalError("lost the lease: another replica may be leading")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Nothing is decided here any more: a successor may start while kopf still stops.
            await self._lease.release()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _resync(self, informer: Informer) -> None:
        """List all objects of a kind now and then: a watch can die silently."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                missed = await informer.resync()
            except ApiError as error:
                logger.warning("%s", error)
                continue
            if missed is not None:
                raise FatalError(f"watch is stale: no event received for {missed}")

    def on_run(self, body: Body, *, deleted: bool) -> None:
        """A run was created, changed or deleted; its study is reconciled when its phase changed."""
        self._run_informer.on_event(body, deleted=deleted)
        key, meta = key_of(body), body["metadata"]
        study = (meta.get("labels") or {}).get(labels.STUDY)
        if study is None:
            return
        phase = (body.get("status") or {}).get("phase")
        state = (meta["uid"], meta.get("deletionTimestamp"), phase)
        if deleted or self._study_runs.get(key) != state:
            self._studies.add(ObjectKey(key.namespace, study), CHANGE_DELAY)
        if deleted:
            self._study_runs.pop(key, None)
        else:
            self._study_runs[key] = state

    def on_study(self, body: Body, *, deleted: bool) -> None:
        """A study was created, changed or deleted."""
        self._study_informer.on_event(body, deleted=deleted)

    def on_pod(self, body: Any) -> None:
        """A pod of a run was created, changed or deleted."""
        self._run_informer.last_contact = time.monotonic()
        meta = body["metadata"]
        self._runs.add(ObjectKey(meta["namespace"], meta["labels"][labels.RUN]), CHANGE_DELAY)

    async def _watch(self, stop: asyncio.Event) -> None:
        await watch(self, self._settings.namespace, stop)

    def problem(self) -> str:
        """What is wrong with this process, in one line; empty when nothing is.

        A standby is healthy and ready: it serves, and it waits for the Lease.
        """
        if not self._lease.held:
            return ""
        if any(queue.is_stalled() for queue in self._queues):
            return "reconciling has stalled"
        last_contact = max(informer.last_contact for informer in self._informers)
        if time.monotonic() - last_contact > SILENT_SECONDS:
            return f"no contact to the API server for {SILENT_SECONDS:.0f} s"
        return ""


Check = Callable[[], str]
"""Returns what is wrong, in one line; empty when nothing is."""


def http_app(healthy: Check, ready: Check, registry: CollectorRegistry) -> web.Application:
    """The routes /healthz, /readyz and /metrics."""

    def answer(check: Check) -> web.Response:
        problem = check()
        return web.Response(status=503 if problem else 200, text=f"{problem or 'ok'}\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(healthy)

    async def readyz(_: web.Request) -> web.Response:
        return answer(ready)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    return app


@contextlib.asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Listen while the context lasts; yields the port (port 0: any free one)."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _unless(stop: asyncio.Event, work: Any) -> bool:
    """Await `work`, or cancel it when `stop` is set; True when it completed."""
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
    stop_on_signals(stop)
    kube = await Kube.connect()
    try:
        async with probes.session() as http:
            await App(settings, kube, http).run(stop)
    finally:
        await kube.close()
