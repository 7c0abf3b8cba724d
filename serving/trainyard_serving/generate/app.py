"""The text generation server: the routes of OpenAI's API, the same for both engines."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from trainyard_serving.app import create_app
from trainyard_serving.connections import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.engine import Answer, Engine, JsonDict
from trainyard_serving.generate.info import add_info, limits
from trainyard_serving.generate.openai_api import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    invalid_request,
    openai_error_response,
)
from trainyard_serving.generate.openai_responses import encode_in_pieces
from trainyard_serving.generate.sglang_engine import SGLangEngine
from trainyard_serving.generate.tokenization import TokenizationRoutes
from trainyard_serving.generate.torch_engine import TorchEngine
from trainyard_serving.metrics import Metrics
from trainyard_serving.pages import page
from trainyard_serving.settings import GenerateSettings

TITLE = "Trainyard: generate"
COMPLETIONS, CHAT_COMPLETIONS = "/v1/completions", "/v1/chat/completions"
PAGE = Path(__file__).with_name("page.html")


def create_generate_app(settings: GenerateSettings) -> FastAPI:
    """The ASGI app; its lifespan loads the model."""
    metrics = Metrics()
    if settings.engine == "sglang":
        sglang_engine = SGLangEngine(settings, metrics)
        app = create_app(
            TITLE,
            settings,
            sglang_engine.sglang,
            metrics,
            error_response=openai_error_response,
            invalid=invalid_request,
        )
        Routes(settings, sglang_engine).add_to(app)
        return app
    engine = TorchEngine(settings, metrics)
    app = create_app(
        TITLE,
        settings,
        engine.follower,
        metrics,
        error_response=openai_error_response,
        invalid=invalid_request,
        parts=[engine.worker, engine.threads],
        roll_back=engine.follower.roll_back,
        admin_api_key=settings.admin_api_key,
        computed_paths=frozenset({COMPLETIONS, CHAT_COMPLETIONS}),
        full=engine.worker.full,
    )
    routes = Routes(settings, engine)
    routes.add_to(app)
    TokenizationRoutes(engine, routes.check_name).add_to(app)
    return app


class Routes:
    """The app's own routes; their docstrings are their descriptions in OpenAPI."""

    def __init__(self, settings: GenerateSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    def add_to(self, app: FastAPI) -> None:
        add_info(app, self._settings, self._engine)
        app.add_api_route("/v1/models", self.models, response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.one_model, response_model=None)
        for path, route in (
            (COMPLETIONS, self.completions),
            (CHAT_COMPLETIONS, self.chat_completions),
        ):
            app.add_api_route(path, route, methods=["POST"], response_model=None)
        app.add_api_route("/", self.page, response_class=HTMLResponse, include_in_schema=False)

    async def models(self) -> JsonDict:
        """The list of models, which has one entry."""
        return {"object": "list", "data": [self._model_json()]}

    async def one_model(self, name: str) -> JsonDict:
        """The model by its name."""
        self.check_name(name)
        return self._model_json()

    async def page(self) -> HTMLResponse:
        """A page to try the model."""
        return page(PAGE)

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        """Text that continues each prompt, in one response or streamed as server-sent events."""
        self.check_name(body.model)
        limits = self._settings
        _check_limit("max_tokens", body.limit, limits.max_tokens)
        _check_limit("prompt", len(body.prompt), limits.max_prompts, "prompts in one request")
        _check_texts("best_of" if body.best_of else "n", len(body.prompt) * body.candidates, limits)
        return await _respond(request, body, lambda held: self._engine.complete(body, held))

    async def chat_completions(self, request: Request, body: ChatRequest) -> Response:
        """The assistant's next message, in one response or streamed as server-sent events."""
        self.check_name(body.model)
        _check_limit(body.limit_field, body.limit or 1, self._settings.max_tokens)
        _check_texts("n", body.n or 1, self._settings)
        return await _respond(request, body, lambda held: self._engine.chat(body, held))

    def _model_json(self) -> JsonDict:
        card = self._engine.model_card()
        return {
            "id": card.name,
            "object": "model",
            "created": card.created,
            "owned_by": "trainyard",
            "max_model_len": card.context_length,
            **limits(self._settings),
            "chat": card.has_chat_template,
            "step": card.step,
            "digest": card.digest,
        }

    def check_name(self, name: str | None) -> None:
        """Raise ApiError: 503 while there is no model, 404 if its name differs."""
        served = self._engine.model_card().name
        if name not in (None, served):
            message = f"no model {name!r} here: this server has {served!r}"
            raise ApiError(404, message, "model_not_found", "model")


def _check_limit(field: str, value: int, limit: int, what: str = "here") -> None:
    """Raise ApiError when a request exceeds a limit of this server."""
    if value > limit:
        message = f"{field}: at most {limit} {what} (got {value})"
        raise ApiError(400, message, "invalid_value", field)


def _check_texts(field: str, num_texts: int, settings: GenerateSettings) -> None:
    _check_limit(field, num_texts, settings.max_prompts, "texts in one request")


async def _respond(
    request: Request,
    body: GenerationRequest,
    begin: Callable[[AsyncExitStack], Awaitable[Answer]],
) -> Response:
    """The response to `body`. A client that disconnects cancels the computation.

    Raises ApiError.
    """
    async with AsyncExitStack() as resources:
        answer = await unless_disconnected(request, begin(resources))
        if answer is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if body.stream:
            return EventStream(
                server_sent_events(answer), resources.pop_all(), headers=answer.headers
            )
        content = await unless_disconnected(request, answer.response())
        if content is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    if body.num_top is None:
        return JSONResponse(content, headers=answer.headers)
    encoded = await run_in_threadpool(encode_in_pieces, content)
    return Response(encoded, media_type="application/json", headers=answer.headers)


class EventStream(EventSourceResponse):
    """Releases `resources` once the stream ends, even if its generator was never started."""

    def __init__(
        self, events: AsyncIterator[bytes], resources: AsyncExitStack, **options: Any
    ) -> None:
        super().__init__(events, **options)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            await super().__call__(scope, receive, send)


async def server_sent_events(answer: Answer) -> AsyncIterator[bytes]:
    """The events of an answer, as bytes of an event stream that ends with [DONE] or an error."""
    try:
        async for event in answer.events():
            yield format_sse_event(data_str=json.dumps(event, ensure_ascii=False))
    except ApiError as error:  # the status has been sent, so the stream reports the error
        yield format_sse_event(data_str=bytes(openai_error_response(error).body).decode())
        return
    yield format_sse_event(data_str="[DONE]")
