"""kopf's part: watches of runs, pods and studies, which only say what changed."""

import asyncio
import signal
from typing import Any, Protocol

import kopf

from trainyard_api import labels
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_api.study import STUDY_PLURAL
from trainyard_operator.feed import Body


class Told(Protocol):
    """Is told of every event."""

    def run_changed(self, body: Body, *, deleted: bool) -> None: ...

    def study_changed(self, body: Body, *, deleted: bool) -> None: ...

    def pod_changed(self, body: Body) -> None: ...


async def watch(told: Told, namespace: str, stop: asyncio.Event) -> None:
    """Watch runs, their pods and studies (in `namespace`, if given) until `stop`.

    The handlers are coroutines, because kopf runs plain functions in threads.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def run_event(event: Any, body: Any, **_: Any) -> None:
        told.run_changed(body, deleted=event["type"] == "DELETED")

    @kopf.on.event(GROUP, VERSION, STUDY_PLURAL, registry=registry)
    async def study_event(event: Any, body: Any, **_: Any) -> None:
        told.study_changed(body, deleted=event["type"] == "DELETED")

    @kopf.on.event("", "v1", "pods", labels={labels.RUN: kopf.PRESENT}, registry=registry)
    async def pod_event(body: Any, **_: Any) -> None:
        told.pod_changed(body)

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


def stop_on_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set `stop`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _take_signals_back(started: asyncio.Event, stop: asyncio.Event) -> None:
    """kopf takes signals for itself when it starts; but we have more to stop than it."""
    await started.wait()
    stop_on_signals(stop)
