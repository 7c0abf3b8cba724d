"""What every app shares: /health, /ready, /metrics, roll-back, errors, limits, the API key."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from trainyard_api import __version__
from trainyard_serving.api_key import ApiKey
from trainyard_serving.backend import Backend, Part, Served
from trainyard_serving.errors import ApiError, QueueFullError, as_api_error, detail_form
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import BodyLimit, Observe, Shed
from trainyard_serving.settings import ServerSettings

# Pages need no key: they hold nothing secret, and ask for the key where one is needed.
PAGES = frozenset({"/", "/try", "/docs", "/openapi.json"})
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
)
# What the pages share: a link in their source, and what stands there once it is served.
PAGE = Path(__file__).with_name("page")
PAGE_PARTS = (
    ('<link rel="stylesheet" href="page.css">', "page.css", "style"),
    ('<script src="page.js"></script>', "page.js", "script"),
)


class _Shared:
    """The routes that every app has."""

    def __init__(
        self, settings: ServerSettings, backend: Backend, parts: list[Part], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._parts = parts
        self._metrics = metrics

    async def health(self) -> JSONResponse:
        """Whether the process works; true before a model is there."""
        alive = all(part.alive for part in self._parts)
        return JSONResponse(
            {
                "status": "healthy" if alive else "a thread of the server has died",
                "model_loaded": self._backend.ready,
                **_fields(self._backend.served),
                **self._backend.details,
            },
            status_code=200 if alive else 503,
        )

    async def ready(self) -> JSONResponse:
        """Whether predictions will be answered, and if not, why."""
        refused = self._backend.refused
        if not self._backend.ready:
            error = not_ready(self._backend, self._settings)
            content = {"ready": False, "reason": error.detail, "refused": refused}
            return JSONResponse(content, 503, headers=error.headers)
        fields = _fields(self._backend.served) | self._backend.details
        return JSONResponse({"ready": True, **fields, "refused": refused})

    async def metrics_text(self) -> Response:
        """Prometheus metrics."""
        self._metrics.model_info.clear()
        if served := self._backend.served:
            step = "" if served.step is None else str(served.step)
            self._metrics.model_info.labels(served.run, step, served.digest).set(1)
        text = self._metrics.exposition()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def not_ready(backend: Backend, settings: ServerSettings) -> ApiError:
    """What requests are answered while there is no model."""
    wait = max(1, math.ceil(settings.poll_seconds))
    return ApiError(503, backend.reason, "model_not_loaded", retry_after=wait)


def create_app(
    title: str,
    settings: ServerSettings,
    backend: Backend,
    metrics: Metrics,
    *,
    form: Callable[[ApiError], Response] = detail_form,
    invalid: Callable[[RequestValidationError], ApiError] | None = None,
    beside: Sequence[Part] = (),
    roll_back: Callable[[], Served | None] | None = None,
    computed: frozenset[str] = frozenset(),
    full: Callable[[], QueueFullError | None] | None = None,
) -> FastAPI:
    """An app with the shared routes; the caller adds its own.

    Args:
        form: the JSON of an answer other than 200.
        invalid: what a request that does not fit its model is answered; default: FastAPI's 422.
        beside: what else lives as long as the server.
        roll_back: takes the model before the current one back; POST /admin/rollback, which exists
            only behind an API key.
        computed: paths whose requests wait for the model.
        full: why none of those is taken right now; they are refused before they are read.
    """
    parts = [*beside, backend]
    shared = _Shared(settings, backend, parts, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for part in parts:
            part.start()
        try:
            yield
        finally:
            # uvicorn has let running requests finish: what is left here overstayed its time.
            for part in parts:
                await run_in_threadpool(part.stop)

    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a CDN
        redoc_url=None,
    )
    routes: dict[str, Callable[[], Any]] = {
        "/health": shared.health,
        "/ready": shared.ready,
        "/metrics": shared.metrics_text,
    }
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    keys = _keys(settings)
    if roll_back and keys:
        _add_roll_back(app, roll_back)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return form(as_api_error(request, error))

    async def server_error(request: Request, error: Exception) -> Response:
        return form(ApiError(500, "the server failed; its log says why"))

    async def validation_error(request: Request, error: Exception) -> Response:
        assert invalid is not None
        assert isinstance(error, RequestValidationError)
        return form(invalid(error))

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, server_error)
    if invalid:
        app.add_exception_handler(RequestValidationError, validation_error)
    if full:
        app.add_middleware(Shed, computed=computed, full=full, form=form)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if keys:
        app.add_middleware(ApiKey, keys=keys, open_paths=_open_paths(settings), form=form)
    app.add_middleware(Observe, metrics=metrics, served=lambda: backend.served)
    return app


def page(file: Path) -> HTMLResponse:
    """A page of ours: everything it needs is in it, also what it shares with the others."""
    text = file.read_text(encoding="utf-8")
    for link, name, tag in PAGE_PARTS:
        part = (PAGE / name).read_text(encoding="utf-8")
        text = text.replace(link, f"<{tag}>\n{part}</{tag}>")
    return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})


def _fields(served: Served | None) -> dict[str, Any]:
    return {"run": served.run, "step": served.step, "digest": served.digest} if served else {}


def _keys(settings: ServerSettings) -> list[str]:
    text = settings.api_key.get_secret_value() if settings.api_key else ""
    return [key for part in text.split(",") if (key := part.strip())]


def _open_paths(settings: ServerSettings) -> frozenset[str]:
    health = frozenset() if settings.protect_health else {"/health", "/ready"}
    metrics = frozenset() if settings.protect_metrics else {"/metrics"}
    return PAGES | health | metrics


def _add_roll_back(app: FastAPI, roll_back: Callable[[], Served | None]) -> None:
    async def admin_rollback() -> JSONResponse:
        """Serve the model before the current one, and refuse the current one from now on."""
        served = await run_in_threadpool(roll_back)
        if served is None:
            raise ApiError(409, "there is no previous model to go back to", "no_previous_model")
        return JSONResponse(_fields(served))

    app.add_api_route("/admin/rollback", admin_rollback, methods=["POST"], response_model=None)
