"""What happens around every request: API key, size limit, refusal under overload, metrics.

Plain ASGI instead of Starlette's BaseHTTPMiddleware, so that streams pass through unbuffered.
"""

import hashlib
import hmac
import time
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard_serving.errors import ApiError, QueueFullError
from trainyard_serving.metrics import Metrics

DIGEST_HEADER = b"x-trainyard-digest"
# Asked every few seconds by machines; as requests they would hide those of clients.
PROBES = frozenset({"/health", "/ready", "/metrics"})
ROUTE = "trainyard.route"  # key in a scope: the route of a request that never reached the router


class ApiKey:
    """Answers 401 to requests without one of the API keys, except on the open paths."""

    def __init__(
        self,
        app: ASGIApp,
        keys: list[str],
        open_paths: frozenset[str],
        error_response: Callable[[ApiError], Response],
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._known(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "send a valid API key: Authorization: Bearer KEY",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await self._error_response(error)(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(("/docs/", "/static/"))

    def _known(self, scope: Scope) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        digest = _digest(given.strip())
        # Digests have one length, and every key is compared: the time reveals nothing about keys.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


class BodyLimit:
    """Refuses bodies above `limit` bytes with 413, by declared length or while they arrive."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope.get("headers", ())).get(b"content-length", b"0")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if int(declared) > self._limit:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limit} bytes", "body_too_large")


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


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
