"""The text generation server: OpenAI's completions API over one exported model."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from trainyard_api import __version__
from trainyard_serving.completions import Completions
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import BodyLimit, Observe
from trainyard_serving.model_holder import ModelHolder
from trainyard_serving.openai_api import ApiError, CompletionRequest, invalid_request
from trainyard_serving.settings import GenerateSettings
from trainyard_serving.worker import Worker

if TYPE_CHECKING:
    from trainyard_serving.language_model import LanguageModel

PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


class GenerateServer:
    """The parts of one server and its routes, which `create_app` puts into an app."""

    def __init__(self, settings: GenerateSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.worker = Worker(settings.max_queue)
        self.holder = ModelHolder(settings)
        self.metrics.queue_depth.set_function(lambda: self.worker.depth)
        self._completions = Completions(settings, self.worker, self.metrics)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.worker.start()
        self.holder.start()
        try:
            yield
        finally:
            # uvicorn has let running requests finish: what is left here overstayed its time.
            await run_in_threadpool(self.worker.stop)
            await run_in_threadpool(self.holder.stop)

    @property
    def digest(self) -> str | None:
        return self.holder.model.source.digest if self.holder.model else None

    async def page(self) -> HTMLResponse:
        """A page to try the model by hand."""
        return HTMLResponse(PAGE.read_bytes(), headers={"content-security-policy": PAGE_POLICY})

    async def health(self) -> JSONResponse:
        """Whether the process works; true before a model is there."""
        alive = self.worker.alive
        return JSONResponse(
            {"status": "healthy" if alive else "the model's thread has died", **self._served()},
            status_code=200 if alive else 503,
        )

    async def ready(self) -> JSONResponse:
        """Whether predictions will be answered, and if not, why."""
        if self.holder.model is None:
            return JSONResponse(
                {"ready": False, "reason": self.holder.reason},
                status_code=503,
                headers={"Retry-After": str(self._retry_seconds)},
            )
        refused = list(self.holder.model.source.refused)
        return JSONResponse({"ready": True, **self._served(), "refused": refused})

    async def metrics_text(self) -> Response:
        """Prometheus metrics."""
        if model := self.holder.model:
            manifest = model.source.manifest
            labels = (manifest.run, str(manifest.step), model.source.digest)
            self.metrics.model_info.labels(*labels).set(1)
        text = self.metrics.exposition()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """The one model, in OpenAI's form."""
        return {"object": "list", "data": [self._card(self._model(None))]}

    async def one_model(self, name: str) -> dict[str, Any]:
        """The model by its name."""
        return self._card(self._model(name))

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        """Text that goes on from the prompt, whole or streamed as server-sent events."""
        model = self._model(body.model)
        return await self._completions.answer(request, body, model, self._name(model))

    def _model(self, name: str | None) -> "LanguageModel":
        """The model, if it is there (else 503) and is the one asked for (else 404)."""
        model = self.holder.model
        if model is None:
            wait = self._retry_seconds
            raise ApiError(503, self.holder.reason, "model_not_loaded", retry_after=wait)
        served = self._name(model)
        if name not in (None, served):
            message = f"no model {name!r} here: this server has {served!r}"
            raise ApiError(404, message, "model_not_found", "model")
        return model

    def _name(self, model: "LanguageModel") -> str:
        return self.settings.served_model_name or model.source.manifest.run

    def _served(self) -> dict[str, Any]:
        if (model := self.holder.model) is None:
            return {"model_loaded": False}
        manifest, digest = model.source.manifest, model.source.digest
        return {
            "model_loaded": True,
            "run": manifest.run,
            "step": manifest.step,
            "digest": digest,
        }

    def _card(self, model: "LanguageModel") -> dict[str, Any]:
        manifest = model.source.manifest
        return {
            "id": self._name(model),
            "object": "model",
            "created": int(manifest.created.timestamp()),
            "owned_by": "trainyard",
            "max_model_len": model.context_length,
            "max_tokens": self.settings.max_tokens,
            "step": manifest.step,
            "digest": model.source.digest,
        }

    @property
    def _retry_seconds(self) -> int:
        return max(1, round(self.settings.retry_seconds))


def create_app(settings: GenerateSettings) -> FastAPI:
    """The server's ASGI app; the model is loaded once its lifespan begins."""
    server = GenerateServer(settings)
    app = FastAPI(
        title="Trainyard: generate",
        version=__version__,
        lifespan=server.lifespan,
        docs_url=None,  # these pages load scripts from a CDN
        redoc_url=None,
    )
    routes: list[tuple[str, Callable[..., Any]]] = [
        ("/health", server.health),
        ("/ready", server.ready),
        ("/metrics", server.metrics_text),
        ("/v1/models", server.models),
        ("/v1/models/{name:path}", server.one_model),
    ]
    for path, endpoint in routes:
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    app.add_api_route("/v1/completions", server.completions, methods=["POST"], response_model=None)
    app.add_api_route("/", server.page, response_class=HTMLResponse, include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _server_error)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Observe, metrics=server.metrics, digest=lambda: server.digest)
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        body = error.body
    else:
        what = f"{request.method} {request.url.path}: {error.detail}"
        body = ApiError(error.status_code, what).body
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _http_error(request, invalid_request(error.errors()))


async def _server_error(request: Request, error: Exception) -> Response:
    return await _http_error(request, ApiError(500, "the server failed; its log says why"))
