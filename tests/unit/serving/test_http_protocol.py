"""Connections, byte for byte: upgrades that are ignored, and clients that take their time."""

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import httpx
import psutil
import pytest
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tests import patience
from tests.patience import until
from tests.support.serving.raw_http import Connection, connected, post
from tests.support.serving.servers import running
from tests.unit.serving.test_api_key import CLOSED, create
from trainyard_dashboard.app import _NoModel
from trainyard_serving import protocol as http_protocol
from trainyard_serving.app import create_app
from trainyard_serving.metrics import Metrics
from trainyard_serving.protocol import HttpProtocol
from trainyard_serving.settings import ServerSettings

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
JSON = b'{"text": "a rather long text, which is sent in several pieces"}'
POSTS = {
    "generate": "/v1/completions",
    "generate on SGLang": "/v1/chat/completions",
    "classify": "/predict",
    "vision": "/answer",
    "dashboard": "/api/demo",
}

T = TypeVar("T")


def echo_app(**settings: Any) -> FastAPI:
    """The shared routes, one that returns its body, and one that doesn't read it."""
    app = create_app("echo", ServerSettings(**settings), _NoModel(), Metrics())

    async def echo(body: Annotated[Any, Body()]) -> Any:
        return body

    async def ignore(request: Request) -> str:
        return "unread"

    async def headers(request: Request) -> dict[str, str]:
        await request.body()
        return dict(request.headers)

    app.add_api_route("/echo", echo, methods=["POST"])
    app.add_api_route("/ignore", ignore, methods=["POST"])
    app.add_api_route("/headers", headers, methods=["POST"])
    return app


@pytest.fixture(scope="module")
def echo() -> Iterator[httpx.Client]:
    with running(echo_app()) as client:
        yield client


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("chunks", [0, 1, 7])
@pytest.mark.parametrize("piece", [1, 50, 10**6], ids=["bytewise", "in pieces", "whole"])
def test_an_upgrade_is_ignored_and_the_body_read(
    echo: httpx.Client, upgrade: tuple[str, ...], chunks: int, piece: int
) -> None:
    """Java's HttpClient asks for HTTP/2 in its first request, and sends its body with it."""
    plain, asking = post("/echo", JSON), post("/echo", JSON, *upgrade, chunks=chunks)
    sent = asking + plain + asking + asking
    with connected(echo) as connection:
        for at in range(0, len(sent), piece):
            connection.send(sent[at : at + piece])
        answers = [connection.answer() for _ in range(4)]
    assert [(answer.status, answer.body) for answer in answers] == [
        (200, JSON.replace(b": ", b":"))
    ] * 4
    assert all("upgrade" not in answer.headers for answer in answers)


def test_an_upgrade_without_a_body_is_ignored(echo: httpx.Client) -> None:
    get = "\r\n".join(["GET /health HTTP/1.1", "host: test", *H2C, "", ""]).encode()
    with connected(echo) as connection:
        connection.send(get + get)
        assert [connection.answer().status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("name", CLOSED)
def test_every_app_answers_as_without_an_upgrade(name: str) -> None:
    bodies = [b"{}", b'{"question": 5, "prompt": 5, "messages": 5, "text": "x"}']
    with running(create(name)) as client, connected(client) as connection:
        for body in bodies:
            connection.send(post(POSTS[name], body))
            plain = connection.answer()
            connection.send(post(POSTS[name], body, *H2C))
            asking = connection.answer()
            assert (asking.status, asking.body) == (plain.status, plain.body)


def test_connect_and_what_is_not_http_are_refused(echo: httpx.Client) -> None:
    with connected(echo) as connection:
        connection.send(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n")
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (501, "close")
        assert connection.rest() == b""
    with connected(echo) as connection:
        connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        answer = connection.answer()
        assert (answer.status, connection.rest()) == (400, b"")
        assert len(answer.headers["x-request-id"]) == 32


def slow(client: httpx.Client, sent: bytes) -> Connection:
    """A client that sends this much and then nothing more."""
    url = client.base_url
    connection = Connection(
        socket.create_connection((url.host, url.port or 80), timeout=patience.SECONDS)
    )
    connection.send(sent)
    return connection


def connections(client: httpx.Client) -> int:
    """How many connections the server, which is in this process, still holds."""
    port = client.base_url.port
    return sum(
        bool(each.laddr and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED)
        for each in psutil.Process().net_connections("tcp")
    )


def cycles() -> int:
    """How many requests, with what arrived of their bodies, are in this process's memory."""
    return len(instances(RequestResponseCycle))


def instances(kind: type[T]) -> list[T]:
    """All objects of this very type in the process."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is kind]


def test_half_sent_headers_and_bodies_end_and_free_their_memory() -> None:
    body = b'"' + b"x" * 100_000
    half_body = post("/echo", body + b"x" * 100_000)[:-100_000]
    half_head = b"POST /echo HTTP/1.1\r\nhost: test\r\nx-filler: " + b"x" * 1000
    app = echo_app(body_seconds=0.5)
    with running(app, header_seconds=0.5, body_seconds=0.5) as client:
        assert client.get("/health").status_code == 200
        ours = connections(client)
        bodies = [slow(client, half_body) for _ in range(300)]
        heads = [slow(client, half_head) for _ in range(300)]
        assert {each.answer().status for each in bodies} == {408}
        assert {each.answer().status for each in heads} == {408}
        assert {each.rest() for each in bodies + heads} == {b""}
        until(lambda: connections(client) == ours)
        until(lambda: cycles() <= ours, "the requests are forgotten")
        assert "trainyard_serving_requests_in_progress 0.0" in client.get("/metrics").text


def test_a_late_body_is_a_408_that_says_so_and_closes() -> None:
    with running(echo_app(body_seconds=0.2)) as client:
        connection = slow(client, post("/echo", JSON)[:-1])
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert answer.body == b'{"detail":"the body did not arrive within 0.2 s"}'
        assert connection.rest() == b""


def test_a_late_head_says_so_on_a_used_connection_too() -> None:
    with running(echo_app(), header_seconds=0.2) as client:
        connection = slow(client, post("/echo", JSON) + b"GET /health HTTP/1.1\r\nhost")
        assert connection.answer().status == 200
        answer = connection.answer()
        assert (answer.status, answer.body) == (408, b"the headers did not arrive within 0.2 s\n")
        assert connection.rest() == b""


def test_the_rest_of_a_body_that_nobody_reads_is_not_awaited_for_ever() -> None:
    with running(echo_app(), body_seconds=0.2) as client:
        connection = slow(client, post("/ignore", JSON)[:-1])
        assert connection.answer().status == 200
        assert connection.rest() == b""


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "empty lines"])
def test_a_connection_that_sends_no_request_is_closed(sent: bytes) -> None:
    with running(echo_app(), timeout_keep_alive=0.3) as client:
        assert slow(client, sent).rest() == b""
        used = slow(client, post("/echo", JSON))
        assert used.answer().status == 200
        used.send(b"\r\n")
        assert used.rest() == b""


def test_endless_headers_are_refused(echo: httpx.Client) -> None:
    with connected(echo) as connection:
        connection.send(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(OSError):  # noqa: PT011  (which one depends on what was on its way)
            send_endlessly(connection, b"x-filler: " + b"x" * 1000 + b"\r\n")


def send_endlessly(connection: Connection, data: bytes) -> None:
    while True:
        connection.send(data)


def test_a_slow_but_steady_body_arrives(echo: httpx.Client) -> None:
    sent = post("/echo", JSON, chunks=5)
    with connected(echo) as connection:
        for at in range(0, len(sent), 50):
            connection.send(sent[at : at + 50])
            time.sleep(0.02)  # what makes it slow
        assert connection.answer().status == 200


def test_an_answer_in_progress_is_finished_before_a_bad_request_ends_the_connection(
    echo: httpx.Client,
) -> None:
    with connected(echo) as connection:
        connection.send(post("/echo", JSON) + b"\x00\x01 nonsense\r\n\r\n")
        assert connection.answer().status == 200
        assert connection.rest().partition(b"\r\n")[0] in (b"", b"HTTP/1.1 400 Bad Request")


CHUNKED = "POST %s HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
CHUNKED += "transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 10**6], ids=["bytewise", "whole"])
def test_trailers_do_not_become_headers(echo: httpx.Client, piece: int) -> None:
    sent = post("/headers", JSON, chunks=3).removesuffix(b"\r\n")
    sent += b"authorization: Bearer k\r\nhost: elsewhere\r\nexpect: 100-continue\r\n\r\n"
    sent += post("/echo", JSON)
    with connected(echo) as connection:
        for at in range(0, len(sent), piece):
            connection.send(sent[at : at + piece])
        headers = json.loads(connection.answer().body)
        assert (headers["host"], "authorization" in headers) == ("test", False)
        assert connection.answer().status == 200


@pytest.mark.parametrize("trailer", [b"x-filler: 1\r\n" * 50, b"x" * 600], ids=["many", "one"])
def test_endless_trailers_are_refused(
    echo: httpx.Client, trailer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with connected(echo) as connection:
        connection.send((CHUNKED % "/echo").encode() + b"2\r\n{}\r\n0\r\nx-first: ")
        with pytest.raises(OSError):  # noqa: PT011  (which one depends on what was on its way)
            send_endlessly(connection, trailer)
    assert "431: the trailers are larger than 65536 bytes" in caplog.text


def test_chunks_are_no_trailers(echo: httpx.Client) -> None:
    """Each piece ends with the size of the next chunk."""
    with connected(echo) as connection:
        connection.send((CHUNKED % "/echo").encode() + b"1\r\n")
        connection.send(b'"\r\na000\r\n')
        for _ in range(5):
            connection.send(b"x" * 0xA000 + b"\r\na000\r\n")
        connection.send(b"x" * 0xA000 + b'\r\n1\r\n"\r\n0\r\n\r\n')
        answer = connection.answer()
        assert (answer.status, len(answer.body)) == (200, 6 * 0xA000 + 2)


def test_a_body_that_is_not_http_is_refused_at_once(echo: httpx.Client) -> None:
    with connected(echo) as connection:
        connection.send((CHUNKED % "/echo").encode() + b"2\r\n{}\r\nnonsense\r\n")
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert connection.rest() == b""
    with connected(echo) as connection:  # whose answer does not depend on the body
        connection.send((CHUNKED % "/ignore").encode())
        assert connection.answer().status == 200
        connection.send(b"nonsense\r\n")
        assert connection.rest() == b""


def test_after_a_refusal_nothing_is_read_while_an_answer_is_in_progress() -> None:
    app, released = echo_app(), threading.Event()

    def hold() -> bool:
        return released.wait(patience.SECONDS)

    app.add_api_route("/hold", hold)
    with running(app) as client, connected(client) as connection:
        head = b"GET /hold HTTP/1.1\r\nhost: test\r\n"
        sent = head + b"\r\n" + head + (b"x-filler: " + b"x" * 2**10 + b"\r\n") * 2**12 + b"\r\n"
        sending = threading.Thread(target=send_until_closed, args=(connection, sent))
        sending.start()
        try:
            address = connection.address()

            def ours() -> list[HttpProtocol]:
                every = instances(HttpProtocol)
                return [each for each in every if getattr(each, "client", None) == address]

            until(ours)
            (protocol,) = ours()
            until(lambda: protocol.flow.read_paused)
            assert sum(len(value) for name, value in protocol.headers) < 2**20
        finally:
            released.set()
        answer = connection.answer()
        assert answer.status == 200
        assert answer.headers.get("connection", "close") == "close"  # older uvicorns don't say it
        sending.join()  # which only the end of the connection makes possible


def send_until_closed(connection: Connection, data: bytes) -> None:
    with suppress(OSError):
        connection.send(data)


def test_a_client_that_reads_no_answer_loses_its_connection_and_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_SECONDS", 1)
    app, ended = echo_app(), threading.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 2**16
                await asyncio.sleep(0)  # where it is cancelled
        finally:
            ended.set()

    app.add_api_route("/stream", lambda: StreamingResponse(stream()))
    app.add_api_route("/large", lambda: Response(b"x" * 2**26))
    with running(app) as client:
        assert client.get("/health").status_code == 200
        ours = connections(client)
        with connected(client) as streamed, connected(client) as large:
            streamed.send(b"GET /stream HTTP/1.1\r\nhost: test\r\n\r\n")
            large.send(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n")
            until(ended.is_set)
            until(lambda: connections(client) <= ours)
