"""What all servers do with any request: ids, the log, HEAD, other origins, prefixes, bodies."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from tests.patience import until
from tests.support.serving.raw_http import connected, post
from tests.support.serving.reverse_proxy import PREFIX, behind_proxy
from tests.support.serving.servers import running
from tests.unit.serving.test_api_key import CLOSED, create, routes
from tests.unit.serving.test_http_protocol import echo_app
from trainyard_serving import access

apps = pytest.mark.parametrize("name", CLOSED)
ORIGIN = "https://app.example.org"
MADE = re.compile(r"[0-9a-f]{32}")


def failing_app(**settings: Any) -> FastAPI:
    """Routes that stream, fail, and fail while they stream."""
    app = echo_app(**settings)

    async def stream() -> StreamingResponse:
        return StreamingResponse(part async for part in parts(fails=False))

    async def fail() -> None:
        raise RuntimeError("boom")

    async def fail_late() -> StreamingResponse:
        return StreamingResponse(part async for part in parts(fails=True))

    async def parts(fails: bool) -> Any:
        yield b"first"
        if fails:
            raise RuntimeError("boom")
        yield b"second"

    app.add_api_route("/stream", stream, response_model=None)
    app.add_api_route("/fail", fail, response_model=None)
    app.add_api_route("/fail-late", fail_late, response_model=None)
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    app = failing_app(max_body_bytes=1000, cors_origins=f"{ORIGIN},http://localhost:3000")
    with running(app) as client:
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The log, each line with its request's id, as the programs write it."""
    written: list[str] = []

    class Written(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            access.add_request_id(record)
            written.append(f"{vars(record)['request']}{record.getMessage()}")

    caplog.set_level(logging.INFO)
    handler = Written()
    for name in ("trainyard_serving", "uvicorn"):
        logging.getLogger(name).addHandler(handler)
    yield written
    for name in ("trainyard_serving", "uvicorn"):
        logging.getLogger(name).removeHandler(handler)


def logged(lines: list[str], words: str) -> str:
    """The only line with these words, once it is written."""
    until(lambda: any(words in line for line in lines), words)
    (line,) = [line for line in lines if words in line]
    return line


# Ids and the log.


@pytest.mark.parametrize("given", ["a", "0b7c-1.2_3:4/5+6=~", "x" * 128])
def test_a_well_formed_id_is_given_back(server: httpx.Client, given: str) -> None:
    answer = server.get("/health", headers={"x-request-id": given})
    assert answer.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "a,b", '"', "ü"])
def test_another_id_is_replaced(server: httpx.Client, given: str) -> None:
    answer = server.get("/health", headers={b"x-request-id": given.encode()})
    assert MADE.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET /health", 200),
        ("GET /nothing", 404),
        ("PUT /health", 405),
        ("POST /echo", 400),
        ("GET /fail", 500),
        ("GET /stream", 200),
        ("OPTIONS /echo", 405),
    ],
)
def test_every_answer_has_the_id(server: httpx.Client, request_: str, status: int) -> None:
    method, path = request_.split()
    answer = server.request(method, path, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")


def test_refusals_have_the_id() -> None:
    with running(echo_app(api_key="k", max_body_bytes=10, body_seconds=0.1)) as client:
        key = "authorization: Bearer k"
        with connected(client) as connection:
            connection.send(post("/echo", b"{}", "x-request-id: one"))
            connection.send(post("/echo", b"x" * 11, key, "x-request-id: two"))
            connection.send(post("/echo", b"{} ", key, "x-request-id: three")[:-1])
            answers = [connection.answer() for _ in range(3)]
    found = [(answer.status, answer.headers["x-request-id"]) for answer in answers]
    assert found == [(401, "one"), (413, "two"), (408, "three")]


def test_a_request_is_one_line_without_query_keys_and_body(
    server: httpx.Client, lines: list[str]
) -> None:
    headers = {"x-request-id": "mine", "authorization": "Bearer sk-secret"}
    server.post("/echo?key=sk-secret", json="sk-secret", headers=headers)
    line = logged(lines, "/echo")
    assert re.fullmatch(r"\[mine\] POST /echo 200 \d\.\d{3} s 11 bytes", line)
    server.get("/stream", headers={"x-request-id": "other"})
    assert re.fullmatch(r"\[other\] GET /stream 200 \d\.\d{3} s 11 bytes", logged(lines, "/stream"))
    server.get("/%0d%0aINFO%20forged%1b[31m")
    assert "/%0D%0AINFO%20forged%1B%5B31m 404" in logged(lines, "forged")
    server.get("/" + "long" * 1000)
    assert len(logged(lines, "longlong")) < 300
    assert "sk-secret" not in str(lines)


def test_probes_are_not_logged_and_the_log_can_be_switched_off(lines: list[str]) -> None:
    with running(echo_app()) as client:
        for path in ("/health", "/ready", "/metrics"):
            client.get(path)
        client.get("/last")
        logged(lines, "GET /last")
    assert not [line for line in lines if "health" in line or "ready" in line or "metrics" in line]
    with running(echo_app(access_log=False)) as client:
        client.get("/unlogged")
    assert not [line for line in lines if "unlogged" in line]


def test_a_failure_is_logged_with_the_id_that_the_client_has(
    server: httpx.Client, lines: list[str]
) -> None:
    answer = server.get("/fail", headers={"x-request-id": "mine"})
    assert answer.json() == {"detail": "the server failed; its log says why (request mine)"}
    assert logged(lines, "the server failed") == "[mine] the server failed"
    assert logged(lines, "GET /fail").startswith("[mine] GET /fail 500 ")
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/fail-late", headers={"x-request-id": "late"})
    assert logged(lines, "Exception in ASGI application").startswith("[late] ")


def test_what_the_protocol_refuses_is_logged_with_an_id(
    server: httpx.Client, lines: list[str]
) -> None:
    with connected(server) as connection:
        connection.send(b"nonsense\r\n\r\n")
        given = connection.answer().headers["x-request-id"]
    assert logged(lines, "not a valid HTTP request").startswith(f"[{given}] 400: ")


# HEAD.


@apps
def test_head_is_answered_where_get_is_with_the_same_headers(name: str) -> None:
    app = create(name)
    paths = sorted(path for method, path in routes(app) if method == "GET")
    paths += ["/nothing", "/docs/static/swagger-ui.css", "/static/index.html"]
    with running(app) as client:
        for path in paths:
            got, head = client.get(path), client.head(path)
            assert head.status_code == got.status_code, path
            assert head.content == b""
            assert comparable(head) == comparable(got), path


def comparable(answer: httpx.Response) -> dict[str, str]:
    """The headers that two answers to the same request share. /metrics grows."""
    own = {"x-request-id", "date"}
    own |= {"content-length"} if answer.url.path == "/metrics" else set()
    return {name: value for name, value in answer.headers.items() if name not in own}


# Other origins.


def preflight(client: httpx.Client, origin: str, **headers: str) -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return client.options("/v1/completions", headers=asked | headers)


def test_pages_of_the_given_origins_may_use_the_api_with_a_key() -> None:
    app = create("generate", api_key="sk-first", cors_origins=f"{ORIGIN},http://localhost:3000")
    with running(app) as client:
        allowed = preflight(client, ORIGIN)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (
            200,
            ORIGIN,
        )
        assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
        for headers, status in (({}, 401), ({"authorization": "Bearer sk-first"}, 503)):
            answer = client.post(
                "/v1/completions", json={"prompt": "a"}, headers=headers | {"origin": ORIGIN}
            )
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = preflight(client, "https://other.example.org")
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


def test_failures_can_be_read_by_pages_of_the_given_origins(server: httpx.Client) -> None:
    answer = server.get("/fail", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, ORIGIN)


def test_without_origins_no_page_elsewhere_may_use_the_api() -> None:
    with running(create("generate", api_key="sk-first")) as client:
        answers = [preflight(client, ORIGIN), client.get("/health", headers={"origin": ORIGIN})]
        assert not any("access-control-allow-origin" in answer.headers for answer in answers)


# Path prefixes.


@apps
@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "kept"])
def test_behind_a_prefix_every_route_answers_as_without(name: str, strip: bool) -> None:
    settings = {} if strip else {"path_prefix": PREFIX}
    app = create(name, api_key="sk-first", **settings)
    with running(app) as client, behind_proxy(client, strip) as url:
        for method, path in sorted(routes(app)):
            direct = client.request(method, path)
            proxied = httpx.request(method, url + path)
            assert (proxied.status_code, path) == (direct.status_code, path)
            assert proxied.headers.get("location", "") == direct.headers.get("location", "")


@apps
def test_no_answer_names_an_absolute_path(name: str) -> None:
    with running(create(name)) as client:
        for path in ("/", "/try", "/docs"):
            answer = client.get(path)
            assert not answer.headers.get("location", "").startswith("/")
            if name != "dashboard":
                assert not re.search(r"(src|href|action)=\"/|fetch\(\"/", answer.text)
        assert client.get("/health/").status_code == 404, "no redirect to an absolute URL"
        assert client.get("/openapi.json").json()["servers"] == [{"url": "."}]


@apps
def test_the_prefix_without_a_slash_leads_to_the_one_with_it(name: str) -> None:
    with (
        running(create(name, path_prefix=PREFIX)) as client,
        behind_proxy(client, strip=False) as url,
    ):
        answer = httpx.get(f"{url}?a=b%20c")
        assert answer.status_code == 308
        assert answer.next_request is not None
        assert str(answer.next_request.url) == f"{url}/?a=b%20c"
        assert MADE.fullmatch(answer.headers["x-request-id"])
        assert (
            httpx.get(url, follow_redirects=True).text
            == client.get("/", follow_redirects=True).text
        )
        assert client.head(PREFIX).status_code == 308


def test_the_prefix_opens_nothing() -> None:
    """A path that only looks like an open one, because of the prefix, needs the key."""
    app = create("generate", api_key="sk-first", path_prefix="/docs")
    with running(app) as client:
        assert client.get("/docs/v1/models").status_code == 401
        assert client.get("/docs/health").status_code == 200


# Bodies.

BODIES = {
    "generate": ("/v1/completions", "/v1/chat/completions"),
    "generate on SGLang": ("/v1/completions", "/v1/chat/completions"),
    "classify": ("/predict", "/predict/batch"),
    "dashboard": ("/api/demo",),
}  # vision reads its bodies itself: see test_vision_http.py


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b'{"text": "a"}'),
        ("text/plain", b'{"text": "a"}'),
        (None, b'{"text": "a"}'),
        ("application/x-www-form-urlencoded", b""),
        (None, b""),
        ("application/json", b""),
    ],
)
def test_a_body_that_is_not_declared_as_json_gets_the_header_to_send(
    name: str, kind: str | None, body: bytes
) -> None:
    with running(create(name)) as client:
        for path in BODIES[name]:
            headers = {"content-type": kind} if kind else {}
            answer = client.post(path, content=body, headers=headers)
            assert answer.status_code == (415 if body else 400)
            assert "with the header Content-Type: application/json" in answer.text
            assert ("the body is empty" in answer.text) == (not body)
