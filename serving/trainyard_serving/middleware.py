"""What happens around every request: keys, limits, refusal under overload, errors, metrics.

Plain ASGI instead of Starlette's BaseHTTPMiddleware, so that streams pass through unbuffered.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard_serving.access import PROBES, RequestLog, request_id
from trainyard_serving.errors import ApiError, QueueFullError
from trainyard_serving.metrics import Metrics

log = logging.getLogger(__name__)

ADMIN = "/admin/"  # the paths that need a key of their own
DIGEST_HEADER = b"x-trainyard-digest"
ROUTE = "trainyard.route"  # key in a scope: the route of a request that never reached the router


class PathPrefix:
    """Removes the prefix under which a proxy publishes the server, if the proxy hasn't done so.

    The prefix alone is redirected to the one with a slash, to which the pages' URLs are relative.
    """

    def __init__(self, app: ASGIApp, prefix: str, log_requests: bool) -> None:
        self._app = app
        self._prefix = prefix
        self._redirected = RequestLog(self._redirect, log_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path == self._prefix:
            await self._redirected(scope, receive, send)
            return
        if path.startswith(self._prefix + "/"):
            scope = {**scope, "path": path.removeprefix(self._prefix)}
            scope.pop("raw_path", None)
        await self._app(scope, receive, send)

    async def _redirect(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Relative: an outer proxy may have removed a prefix of its own.
        query = scope["query_string"].decode("latin-1")
        url = self._prefix.rpartition("/")[2] + "/" + (f"?{query}" if query else "")
        await RedirectResponse(url, 308)(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET, with the same headers and without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        # uvicorn still needs the method in its own scope.
        await self._app({**scope, "method": "GET"}, receive, without_body)


class CatchErrors:
    """Answers 500 to what nobody has caught, and logs it.

    Starlette does this outside of all middleware, so that the answer would lack their headers.
    """

    def __init__(self, app: ASGIApp, error_response: Callable[[ApiError], Response]) -> None:
        self._app = app
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responding = False

        async def watched(message: Message) -> None:
            nonlocal responding
            responding = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http" or responding:
                raise  # uvicorn logs it, and closes the connection
            log.exception("the server failed")
            error = ApiError(500, f"the server failed; its log says why (request {request_id()})")
            await self._error_response(error)(scope, receive, send)


class ApiKey:
    """Answers 401 to requests without a key: one of `keys`, except on the open paths.

    Paths below ADMIN need one of `admin_keys` instead. Without `keys`, all others are open.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: list[str],
        admin_keys: list[str],
        open_paths: frozenset[str],
        error_response: Callable[[ApiError], Response],
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._admin_digests = [_digest(key.encode()) for key in admin_keys]
        self._open_paths = open_paths
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        admin = bool(self._admin_digests) and scope["path"].startswith(ADMIN)
        digests = self._admin_digests if admin else self._digests
        if self._is_open(scope["path"]) or not digests or _has_key(scope, digests):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            f"send a valid {'admin ' if admin else ''}API key: Authorization: Bearer KEY",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await self._error_response(error)(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(("/docs/", "/static/"))


def _has_key(scope: Scope, digests: list[bytes]) -> bool:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        given = headers.get(b"x-api-key", b"")
    digest = _digest(given.strip())
    # Digests have one length, and every key is compared: the time reveals nothing about keys.
    return sum(hmac.compare_digest(digest, known) for known in digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class BodyLimit:
    """Refuses bodies above `limit` bytes, declared or received (413), and slow ones (408).

    The time counts from when the body is first read: a request that waits for its turn before that
    is not slow.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = int(dict(scope["headers"]).get(b"content-length", b"0"))
        received = 0
        deadline: float | None = None
        complete = False

        async def limited() -> Message:
            nonlocal received, deadline, complete
            if declared > self._limit:
                raise self._too_large()
            if complete:  # the app waits for the client to leave
                return await receive()
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + self._seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            complete = not message.get("more_body")
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limit} bytes", "body_too_large")

    def _too_slow(self) -> ApiError:
        message = f"the body did not arrive within {self._seconds:g} s"
        return ApiError(408, message, "body_timeout")


class LoadShedding:
    """Refuses requests while the queue is full, without reading them.

    Under overload the model needs the CPU time that parsing bodies, and serializing the same
    refusal again and again, would take.
    """

    def __init__(
        self,
        app: ASGIApp,
        computed_paths: frozenset[str],
        full: Callable[[], QueueFullError | None],
        error_response: Callable[[ApiError], Response],
    ) -> None:
        """`full` returns why requests to `computed_paths` are refused now; None accepts them."""
        self._app = app
        self._computed_paths = computed_paths
        self._full = full
        self._error_response = error_response
        self._responses: dict[int | None, tuple[Message, Message]] = {}  # by Retry-After

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] in self._computed_paths
            and (error := self._full())
        ):
            scope[ROUTE] = scope["path"]
            for message in self._response(error):
                await send(message)
            return
        await self._app(scope, receive, send)

    def _response(self, error: QueueFullError) -> tuple[Message, Message]:
        if error.retry_after not in self._responses:
            response = self._error_response(error)
            self._responses[error.retry_after] = (
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": response.raw_headers,
                },
                {"type": "http.response.body", "body": response.body},
            )
        return self._responses[error.retry_after]


class Observe:
    """Counts and times requests, and names the model's digest in the response's header.

    Probes are answered, but not counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, digest: Callable[[], str | None]) -> None:
        self._app = app
        self._metrics = metrics
        self._digest = digest
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_probe = scope["path"] in PROBES
        if not is_probe:
            self._metrics.requests_in_progress.inc()
        started = time.monotonic()
        status: int | None = None if is_probe else 500  # None: not, or no longer, to be counted

        def count() -> None:
            nonlocal status
            if status is not None:
                # The route that the router found: paths that clients invent must not become labels.
                route = scope.get(ROUTE) or getattr(scope.get("route"), "path", "other")
                requests, seconds = self._series_of(str(route), status)
                requests.inc()
                seconds.observe(time.monotonic() - started)
            status = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = None if is_probe else message["status"]
                headers = list(message["headers"])
                if (digest := self._digest()) and DIGEST_HEADER not in dict(headers):
                    headers.append((DIGEST_HEADER, digest.encode()))
                message = {**message, "headers": headers}
            elif not message.get("more_body"):
                count()  # before the client has the whole response
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            count()
            if not is_probe:
                self._metrics.requests_in_progress.dec()

    def _series_of(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """The time series of such responses; cached, because labels() is slower than counting."""
        key = (route, status)
        if key not in self._series:
            labels = (route, str(status))
            counter = self._metrics.requests.labels(*labels)
            self._series[key] = (counter, self._metrics.request_seconds.labels(*labels))
        return self._series[key]
