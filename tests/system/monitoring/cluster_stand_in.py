"""The real operator in a thread, against a small API server that simulates watches and pods."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests import patience
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_api.progress import ProgressReport
from trainyard_operator import lease, probes
from trainyard_operator.app import App
from trainyard_operator.settings import Settings

NAMESPACE = "lab"
PATH = f"/apis/trainyard.dev/v1alpha1/namespaces/{NAMESPACE}"
_fetch_report = probes.fetch_report


class Cluster:
    """The state of the simulated cluster: its objects, and the report ports of its pods."""

    def __init__(self) -> None:
        self.state = ApiServer()
        self.report_ports: dict[str, int] = {}  # by pod name; these pods run
        self.app: App | None = None

    def put_run(self, name: str, spec: dict[str, Any], status: Any = None, **metadata: Any) -> None:
        run = {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "generation": 1, **metadata},
            "spec": {"recipe": "char-gpt", **spec},
        }
        self.state.put(f"{PATH}/trainingruns/{name}", run | ({"status": status} if status else {}))

    def put_study(self, name: str, spec: dict[str, Any], status: dict[str, Any]) -> None:
        study = {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "ScalingStudy",
            "metadata": {"name": name, "generation": 1},
            "spec": spec,
            "status": status,
        }
        self.state.put(f"{PATH}/scalingstudies/{name}", study)

    def phase(self, name: str) -> str:
        status: dict[str, Any] = self.state.objects[f"{PATH}/trainingruns/{name}"].get("status", {})
        return str(status.get("phase"))

    def run_pods(self) -> None:
        """Simulate the kubelet: pods with a report port become Running."""
        for path, pod in list(self.state.objects.items()):
            name = pod["metadata"]["name"]
            if "/pods/" in path and name in self.report_ports and "status" not in pod:
                status = {
                    "phase": "Running",
                    "podIP": name,  # `fetch` looks up the port by it
                    "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
                }
                self.state.put(path, {**pod, "status": status})

    async def fetch(
        self, http: aiohttp.ClientSession, address: str
    ) -> tuple[ProgressReport | None, str]:
        return await _fetch_report(http, "127.0.0.1", self.report_ports[address])

    async def watch(self, app: App, stop: asyncio.Event) -> None:
        """Simulate kopf: pass each changed run, study and pod to the operator."""
        seen: dict[str, str] = {}
        while not stop.is_set():
            self.run_pods()
            for path, item in list(self.state.objects.items()):
                version = item["metadata"]["resourceVersion"]
                if seen.get(path) == version:
                    continue
                seen[path] = version
                if "/trainingruns/" in path:
                    app.on_run(item, deleted=False)
                elif "/scalingstudies/" in path:
                    app.on_study(item, deleted=False)
                elif "/pods/" in path:
                    app.on_pod(item)
            await asyncio.sleep(0.05)


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@contextmanager
def operator(
    cluster: Cluster, port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[threading.Thread]:
    """A running operator with its endpoints on `port`."""
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(lease, "RENEW_DEADLINE_SECONDS", patience.SECONDS)
    monkeypatch.setattr(probes, "REPORT_TIMEOUT", aiohttp.ClientTimeout(total=patience.SECONDS))
    monkeypatch.setattr(probes, "fetch_report", cluster.fetch)
    monkeypatch.setattr(App, "_watch", lambda app, stop: cluster.watch(app, stop))
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with api_server(cluster.state) as (_, kube), probes.session() as http:
            settings = Settings(
                own_namespace="trainyard-system", identity="a", host="127.0.0.1", port=port
            )
            cluster.app = App(settings, kube, http)
            await cluster.app.run(stop)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="operator")
    thread.start()
    try:
        yield thread
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(patience.SECONDS)
        loop.close()
