"""What happens around every request: size limit, digest header, counting. Plain ASGI, so that
streams pass through untouched."""

import time
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainyard_serving.backend import Served
from trainyard_serving.errors import ApiError, QueueFullError
from trainyard_serving.metrics import Metrics

DIGEST_HEADER = b"x-trainyard-digest"
ROUTE = "trainyard.route"  # in a scope: the route of a request that never reached the router


class BodyLimit:
    """Refuses a body above `limit` bytes with 413, by its declared length or as it arrives."""

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


class Shed:
    """Refuses at once, before it is read, what there is no room for: under overload the CPU time
    of understanding it is the model's, and so is that of writing the same refusal again."""

    def __init__(
        self,
        app: ASGIApp,
        computed: frozenset[str],
        full: Callable[[], QueueFullError | None],
        form: Callable[[ApiError], Response],
    ) -> None:
        """`full`: why no request to the `computed` paths is taken right now."""
        self._app = app
        self._computed = computed
        self._full = full
        self._form = form
        self._answers: dict[int | None, tuple[Message, Message]] = {}  # by Retry-After

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self._computed and (error := self._full()):
            scope[ROUTE] = scope["path"]
            for message in self._answer(error):
                await send(message)
            return
        await self._app(scope, receive, send)

    def _answer(self, error: QueueFullError) -> tuple[Message, Message]:
        if error.retry_after not in self._answers:
            response = self._form(error)
            self._answers[error.retry_after] = (
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": response.raw_headers,
                },
                {"type": "http.response.body", "body": response.body},
            )
        return self._answers[error.retry_after]


class Observe:
    """Counts and times every request, and names the model in the answer's header."""

    def __init__(self, app: ASGIApp, metrics: Metrics, served: Callable[[], Served | None]) -> None:
        self._app = app
        self._metrics = metrics
        self._served = served
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] != "/metrics":  # else it would count itself
            self._metrics.requests_in_progress.inc()
        started = time.monotonic()
        status: int | None = 500  # None once it is counted

        def count() -> None:
            nonlocal status
            if status is not None:
                # The router leaves its route here; paths of strangers' making are not labels.
                route = scope.get(ROUTE) or getattr(scope.get("route"), "path", "other")
                requests, seconds = self._of(str(route), status)
                requests.inc()
                seconds.observe(time.monotonic() - started)
            status = None

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                if (served := self._served()) and DIGEST_HEADER not in dict(headers):
                    headers.append((DIGEST_HEADER, served.digest.encode()))
                message = {**message, "headers": headers}
            elif not message.get("more_body"):
                count()  # who has the whole answer finds it in the metrics
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            count()
            if scope["path"] != "/metrics":
                self._metrics.requests_in_progress.dec()

    def _of(self, route: str, status: int) -> tuple[Counter, Histogram]:
        """The series of such answers; kept, because finding one takes longer than counting."""
        key = (route, status)
        if key not in self._series:
            counter = self._metrics.requests.labels(route, str(status))
            self._series[key] = (counter, self._metrics.request_seconds.labels(route))
        return self._series[key]
