"""The alerts about servers fire for those that need somebody, in a real Prometheus, and only then.

The rules are the shipped ones with seconds instead of minutes; tests/unit/monitoring has the cases
with the real times.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from monitoring.alerts import GROUPS
from monitoring.rules import rules_file
from tests.patience import until
from tests.support.monitoring.prometheus_server import Prometheus, Target, prometheus
from tests.support.serving.hostile_web import picture
from tests.support.serving.news_model import write_news_model
from tests.support.serving.servers import running, send
from tests.support.serving.sglang_server import stand_in
from trainyard_serving.classify.app import create_classify_app
from trainyard_serving.settings import ClassifySettings, VisionSettings
from trainyard_serving.vision.app import create_vision_app

# Pod names as a Deployment's ReplicaSet makes them, by the name of the release.
PODS = {name: f"{name}-serving-6d4cf56db6-x7k2p" for name in ("waiting", "busy", "eyes", "news")}


def in_seconds(rules: str) -> str:
    """Windows of five seconds instead of minutes, and the same for the alerts' durations."""
    return re.sub(r"for: \d+m", "for: 3s", re.sub(r"\[\d+[mh]\]", "[5s]", rules))


@contextmanager
def every_tenth_of_a_second(*calls: Callable[[], object]) -> Iterator[None]:
    """Each of `calls` again and again, in a thread of its own."""
    stop = threading.Event()

    def repeat(call: Callable[[], object]) -> None:
        while not stop.wait(0.1):
            call()

    threads = [threading.Thread(target=repeat, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def eyes(url: str, **limits: Any) -> FastAPI:
    return create_vision_app(VisionSettings(sglang_url=url, poll_seconds=0.1, **limits))


def ask(client: httpx.Client) -> httpx.Response:
    files = {"image": ("a.png", picture(), "image/png")}
    return client.post("/answer", files=files, data={"question": "What is it?"})


def probe(client: httpx.Client) -> None:
    """What the kubelet asks."""
    client.get("/health")
    client.get("/ready")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, beside a server without a model, one with a full queue, and two healthy ones."""
    with ExitStack() as stack:
        enter = stack.enter_context
        empty, full = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("model")
        write_news_model(full)
        without_model = ClassifySettings(run_dir=str(empty), poll_seconds=0.1)
        with_model = ClassifySettings(model=str(full), threads=1, poll_seconds=0.1, check_texts=20)
        held, free = enter(stand_in()), enter(stand_in())
        clients = {
            "waiting": enter(running(create_classify_app(without_model))),
            "busy": enter(running(eyes(held.url, max_running=1, max_queue=1))),
            "eyes": enter(running(eyes(free.url))),
            "news": enter(running(create_classify_app(with_model))),
        }
        ready = [clients[name] for name in ("busy", "eyes", "news")]
        until(lambda: all(each.get("/ready").status_code == 200 for each in ready), "the models")
        held.held = True  # so that one request runs, one waits, and all others are refused
        image = base64.b64encode(picture()).decode()
        body = {"image_url": f"data:image/png;base64,{image}", "question": "What is it?"}
        for _ in range(2):
            peer = send(clients["busy"], "/answer", json.dumps(body).encode())
            stack.callback(peer.close)
        queued = "trainyard_serving_queue_depth 1.0"
        until(lambda: queued in clients["busy"].get("/metrics").text, "the full queue")
        calls: list[Callable[[], object]] = [
            *(lambda client=client: probe(client) for client in clients.values()),
            lambda: ask(clients["busy"]),
            lambda: ask(clients["eyes"]),
            lambda: clients["news"].post("/predict", json={"text": "oil"}),
            lambda: clients["news"].post("/predict", json={}),  # a client's mistake
        ]
        enter(every_tenth_of_a_second(*calls))
        directory = tmp_path_factory.mktemp("prometheus")
        rules = directory / "rules.yaml"
        rules.write_text(in_seconds(rules_file({"serving": GROUPS["trainyard-serving"]})))
        targets = [
            Target(client.base_url.port or 0, {"namespace": "lab", "pod": PODS[name]})
            for name, client in clients.items()
        ]
        yield enter(prometheus(directory, {"serving": targets}, rules))


def firing(server: Prometheus) -> set[tuple[str, str]]:
    """Names of the alerts that fire, and what each is about."""
    alerts = server.get("/api/v1/alerts")["alerts"]
    return {
        (alert["labels"]["alertname"], alert["labels"].get("app") or alert["labels"]["pod"])
        for alert in alerts
        if alert["state"] == "firing"
    }


def test_each_alert_fires_for_the_server_that_needs_it_only(server: Prometheus) -> None:
    wanted = {
        ("TrainyardServingNoModel", PODS["waiting"]),
        ("TrainyardServingOverloaded", "busy-serving"),
    }
    until(lambda: wanted <= firing(server), "both alerts")
    assert firing(server) == wanted
    measured = server.values("namespace_app_route:trainyard_serving_errors:ratio_rate5m")
    assert {labels["app"]: value for labels, value in measured} == {
        "eyes-serving": 0,
        "news-serving": 0,
    }  # of the others there are only probes and refusals
