"""What all apps share: /health, /ready, /metrics, rollback, errors, limits, API keys."""

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from trainyard_api import __version__
from trainyard_serving.access import HEALTH, METRICS, REQUEST_ID_HEADER, RequestLog
from trainyard_serving.errors import (
    ApiError,
    QueueFullError,
    as_api_error,
    detail_response,
    without_json,
)
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import (
    DIGEST_HEADER,
    ApiKey,
    BodyLimit,
    CatchErrors,
    HeadAsGet,
    LoadShedding,
    Observe,
    PathPrefix,
)
from trainyard_serving.model_store.verified import ServedModel
from trainyard_serving.settings import ServerSettings, keys_of

log = logging.getLogger(__name__)

# What scripts on pages of other origins may read.
EXPOSED_HEADERS = (REQUEST_ID_HEADER, DIGEST_HEADER.decode(), "retry-after")
# Pages need no key: they contain no data of the user's, and ask for the key where one is needed.
PAGES = frozenset({"/", "/try", "/docs", "/openapi.json"})


class Part(Protocol):
    """Something that starts and stops with the server."""

    def start(self) -> None:
        """Begin to work; returns at once."""

    def stop(self) -> None:
        """End everything that `start` began."""

    @property
    def alive(self) -> bool:
        """False once it can never work again, so that the process should be replaced."""


class Backend(Part, Protocol):
    """What computes the answers: a model in this process (`Follower`), or another server."""

    @property
    def served(self) -> ServedModel | None:
        """The current model; None while there is none or its files are unknown."""

    @property
    def ready(self) -> bool:
        """Whether requests will be answered."""

    @property
    def details(self) -> dict[str, Any]:
        """Additional fields of /health and /ready."""

    @property
    def reason(self) -> str:
        """Why it is not ready, in one line."""

    @property
    def refused(self) -> list[str]:
        """One line for each model that is newer than the current one and was refused."""


class _SharedRoutes:
    def __init__(
        self, settings: ServerSettings, backend: Backend, parts: list[Part], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._parts = parts
        self._metrics = metrics

    async def health(self) -> JSONResponse:
        """Whether the process works; true even before a model is loaded."""
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
        """Whether requests will be answered, and if not, why."""
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
    """The answer to requests while there is no model."""
    seconds = max(1, math.ceil(settings.poll_seconds))
    return ApiError(503, backend.reason, "model_not_loaded", retry_after=seconds)


def create_app(
    title: str,
    settings: ServerSettings,
    backend: Backend,
    metrics: Metrics,
    *,
    error_response: Callable[[ApiError], Response] = detail_response,
    invalid: Callable[[RequestValidationError], ApiError] | None = None,
    parts: Sequence[Part] = (),
    roll_back: Callable[[], ServedModel | None] | None = None,
    admin_api_key: SecretStr | None = None,
    computed_paths: frozenset[str] = frozenset(),
    full: Callable[[], QueueFullError | None] | None = None,
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """An app with the shared routes; the caller adds its own.

    Args:
        error_response: the JSON of an answer other than 200.
        invalid: the answer to a request that does not fit its schema; default: FastAPI's 422.
        parts: what starts and stops with the server, besides the backend.
        roll_back: serves the previous model again; POST /admin/rollback.
        admin_api_key: what that route needs; without one it does not exist.
        computed_paths: paths whose requests wait for the model.
        full: why such requests are refused now, before they are read; None accepts them.
        allowed_hosts: names by which clients may call the server; empty: any.
    """
    all_parts = [*parts, backend]
    shared = _SharedRoutes(settings, backend, all_parts, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for part in all_parts:
            part.start()
        try:
            yield
        finally:
            # uvicorn has drained by now: requests that still run have exceeded their time.
            for part in all_parts:
                await run_in_threadpool(part.stop)

    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,  # to an absolute URL, which is wrong behind a path prefix
        servers=[{"url": "."}],  # relative to /openapi.json, for the same reason
    )
    metrics.ready.set_function(lambda: backend.ready)
    app.add_api_route("/health", shared.health, response_model=None)
    app.add_api_route("/ready", shared.ready, response_model=None)
    app.add_api_route("/metrics", shared.metrics_text, response_model=None)
    admin_keys = keys_of(admin_api_key)
    if roll_back and admin_keys:
        _add_roll_back(app, roll_back)
    _add_error_handlers(app, error_response, invalid)

    # The middleware added last sees a request first.
    if full:
        app.add_middleware(
            LoadShedding, computed_paths=computed_paths, full=full, error_response=error_response
        )
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.body_seconds)
    app.add_middleware(
        ApiKey,
        keys=keys_of(settings.api_key),
        admin_keys=admin_keys,
        open_paths=_open_paths(settings),
        error_response=error_response,
    )
    app.add_middleware(CatchErrors, error_response=error_response)
    if allowed_hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts)
    if origins := settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=EXPOSED_HEADERS,
        )

    def digest() -> str | None:
        return served.digest if (served := backend.served) else None

    app.add_middleware(Observe, metrics=metrics, digest=digest)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestLog, log_requests=settings.access_log)
    if settings.path_prefix:
        app.add_middleware(
            PathPrefix, prefix=settings.path_prefix, log_requests=settings.access_log
        )
    return app


def _fields(served: ServedModel | None) -> dict[str, Any]:
    return {"run": served.run, "step": served.step, "digest": served.digest} if served else {}


def _open_paths(settings: ServerSettings) -> frozenset[str]:
    health = frozenset[str]() if settings.protect_health else HEALTH
    metrics = frozenset[str]() if settings.protect_metrics else METRICS
    return PAGES | health | metrics


def _add_roll_back(app: FastAPI, roll_back: Callable[[], ServedModel | None]) -> None:
    async def admin_rollback() -> JSONResponse:
        """Serve the previous model again, and refuse the current one from now on."""
        served = await run_in_threadpool(roll_back)
        if served is None:
            raise ApiError(409, "there is no previous model to go back to", "no_previous_model")
        return JSONResponse(_fields(served))

    app.add_api_route("/admin/rollback", admin_rollback, methods=["POST"], response_model=None)


def _add_error_handlers(
    app: FastAPI,
    error_response: Callable[[ApiError], Response],
    invalid: Callable[[RequestValidationError], ApiError] | None,
) -> None:
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = as_api_error(request, error)
        if answer.status_code >= 500 and answer.status_code != 503:
            log.error("%d: %s", answer.status_code, answer.detail)
        response = error_response(answer)
        if answer.status_code == 408:  # the rest of the body may still come
            response.headers["connection"] = "close"
        return response

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if answer := without_json(request, error):
            return error_response(answer)
        return error_response(invalid(error)) if invalid else invalid_response(error)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


def invalid_response(invalid: RequestValidationError) -> Response:
    """FastAPI's usual form without the input, which may be long or invalid Unicode."""
    detail = [{key: each[key] for key in ("type", "loc", "msg")} for each in invalid.errors()]
    return JSONResponse({"detail": detail}, 422)
