"""Requests that the apps' OpenAPI allows or forbids, and malformed ones, never cause a 5xx."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests import patience
from tests.patience import until
from tests.support.dashboard.home import write_run, write_study
from tests.support.serving.chat_model import export_chat_gpt
from tests.support.serving.embed_server import embed_server, write_encoder
from tests.support.serving.hostile_web import hostile_web
from tests.support.serving.models import write_manifest
from tests.support.serving.news_model import write_news_model
from tests.support.serving.servers import loaded, running
from tests.unit.serving.test_vision_http import asked
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings
from trainyard_serving.classify.app import create_classify_app
from trainyard_serving.settings import ClassifySettings

EXAMPLES = 10  # of each operation, valid and invalid ones


@contextmanager
def generate(directory: Path) -> Iterator[httpx.Client]:
    export_chat_gpt(directory)
    write_manifest(directory)
    with loaded(model=directory, max_tokens=32) as client:
        yield client


@contextmanager
def vision(directory: Path) -> Iterator[httpx.Client]:
    with hostile_web() as web, asked(web) as (client, _):
        yield client


@contextmanager
def classify(directory: Path) -> Iterator[httpx.Client]:
    directory.mkdir(exist_ok=True)
    write_news_model(directory)
    settings = ClassifySettings(model=str(directory), threads=1, poll_seconds=0.05)
    with running(create_classify_app(settings)) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


@contextmanager
def embed(directory: Path) -> Iterator[httpx.Client]:
    write_encoder(directory)
    write_manifest(directory)
    with embed_server(model=directory) as client:
        yield client


@contextmanager
def dashboard(directory: Path) -> Iterator[httpx.Client]:
    write_run(directory, "shakespeare")
    write_study(directory)
    with classify(directory / "model") as model:
        settings = DashboardSettings(home=str(directory), demo_url=str(model.base_url).rstrip("/"))
        with running(create_dashboard_app(settings)) as client:
            yield client


APPS = {
    "generate": generate,
    "vision": vision,
    "classify": classify,
    "embed": embed,
    "dashboard": dashboard,
}


@pytest.fixture(scope="module", params=APPS)
def app(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[httpx.Client]:
    """Each of the apps, ready to answer."""
    with APPS[request.param](tmp_path_factory.mktemp("model")) as client:
        yield client


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_the_server_fail(app: httpx.Client, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(app.get("/openapi.json").json())
    found: list[Any] = list(schema.get_all_operations())
    operations = [operation.ok() for operation in found]
    if mode is GenerationMode.NEGATIVE:
        operations = [operation for operation in operations if operation.body]
    assert operations
    for operation in operations:
        bounded = settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode))
        def never_fails(case: Any) -> None:
            response = case.call(base_url=str(app.base_url), timeout=patience.SECONDS)
            assert response.status_code < 500, (response.text, case.as_curl_command())

        never_fails()
    assert app.get("/health").status_code == 200


ODD_BODIES = [
    b"",
    b"\x00",
    b"{",
    b'"\xff\xfe"',
    b"\xef\xbb\xbf{}",
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"prompt": ' + b"9" * 5_000 + b"}",
    b'{"prompt": "a", "max_tokens": 1e400}',
    b'{"prompt": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": [[[[]]]]}]}',
]
ODD_TYPES = [
    "application/json",
    "application/json; charset=nonsense",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "a/b/c",
    "",
]


def test_no_body_makes_the_server_fail(app: httpx.Client) -> None:
    for path in posts(app):
        for body in ODD_BODIES:
            for kind in ODD_TYPES:
                headers = {"content-type": kind}
                response = app.post(path, content=body, headers=headers)
                assert 400 <= response.status_code < 500, (path, kind, body[:40], response.text)
                assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: abc",
        b"content-length: -1",
        b"content-length: 1e9",
        b"content-length: " + b"9" * 40,
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"transfer-encoding: gzip, chunked",
        b"content-length: 99999999",
    ],
)
def test_no_length_makes_the_server_fail(app: httpx.Client, lines: bytes) -> None:
    assert app.base_url.port is not None
    for path in posts(app):
        with socket.create_connection(
            ("127.0.0.1", app.base_url.port), timeout=patience.SECONDS
        ) as raw:
            head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            raw.sendall(head.encode() + b"connection: close\r\n" + lines + b"\r\n\r\n{}\r\n")
            raw.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))  # type: ignore[misc]
        assert answer[:10] in (b"HTTP/1.1 4", b""), answer[:200]
    assert app.get("/health").status_code == 200


def posts(app: httpx.Client) -> list[str]:
    paths = app.get("/openapi.json").json()["paths"]
    return [path for path, methods in paths.items() if "post" in methods]
