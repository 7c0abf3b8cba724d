"""Text generation by an SGLang server: checks requests here, passes them on, brings answers back.

Clients see the same protocol, limits, errors and metrics as with a model in this process.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from trainyard_serving.app import create_app
from trainyard_serving.disconnect import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.errors import ApiError
from trainyard_serving.gate import Gate
from trainyard_serving.generate.chat_api import ChatRequest
from trainyard_serving.generate.openai_api import (
    CompletionRequest,
    GenerationRequest,
    invalid_request,
    openai_form,
)
from trainyard_serving.generate.routes import OpenAIRoutes, check_name
from trainyard_serving.metrics import Metrics
from trainyard_serving.places import place_of
from trainyard_serving.settings import GenerateSettings
from trainyard_serving.sglang import SGLang

DONE = "[DONE]"


class Forward(OpenAIRoutes):
    """The routes of this app."""

    def __init__(self, settings: GenerateSettings, sglang: SGLang, metrics: Metrics) -> None:
        self._settings = settings
        self._sglang = sglang
        self._metrics = metrics
        self._started = int(time.time())
        self._gate = Gate(settings.max_running, settings.max_queue)
        metrics.queue_depth.set_function(lambda: self._gate.depth)

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        """Text that goes on from the prompt, whole or streamed as server-sent events."""
        self._check("prompt", len(body.prompt), self._settings.max_prompts, "in one request")
        self._check("max_tokens", body.max_tokens or 1, self._settings.max_tokens)
        return await self._answer(request, "/v1/completions", body, {})

    async def chat_completions(self, request: Request, body: ChatRequest) -> Response:
        """The assistant's next turn, whole or streamed as server-sent events."""
        newer = body.max_completion_tokens
        param = "max_tokens" if newer is None else "max_completion_tokens"
        asked = newer or body.max_tokens
        self._check(param, asked or 1, self._settings.max_tokens)
        # Without a limit SGLang would fill the model's whole context.
        limit = {} if asked else {"max_completion_tokens": self._settings.max_tokens}
        return await self._answer(request, "/v1/chat/completions", body, limit)

    async def _answer(
        self, request: Request, path: str, body: GenerationRequest, more: dict[str, Any]
    ) -> Response:
        """SGLang's answer; a client that goes away cancels the request there too."""
        check_name(body.model, self._name())
        asked = sglang_request(body, self._sglang.model.name) | more
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._gate.place())
            started = time.monotonic()
            response = await unless_disconnected(request, self._open(stack, path, asked))
            if response is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            if body.stream:
                events = self._events(response, body.wants_usage, started)
                return _EventStream(events, stack.pop_all())
            text = await unless_disconnected(request, response.aread())
            if text is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(self._whole(text))

    async def _open(
        self, stack: AsyncExitStack, path: str, asked: dict[str, Any]
    ) -> httpx.Response:
        await stack.enter_async_context(self._gate.turn())
        return await stack.enter_async_context(self._sglang.ask(path, asked))

    def _whole(self, text: bytes) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(text)
            self._count(said["usage"])
        except (ValueError, LookupError, TypeError):
            raise ApiError(502, "SGLang's answer is not understood", "model_failed") from None
        return said | {"model": self._name()}

    async def _events(
        self, response: httpx.Response, wants_usage: bool, started: float
    ) -> AsyncIterator[str]:
        first = True
        try:
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == line:  # the empty line between events, or a comment
                    continue
                if data == DONE:
                    yield f"data: {DONE}\n\n"
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ApiError(502, f"SGLang failed: {event['error']['message']}")
                if first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - started)
                    first = False
                if usage := event.get("usage"):
                    self._count(usage)
                if event["choices"] or wants_usage:
                    yield _event(event | {"model": self._name()})
            raise ApiError(502, "SGLang's answer broke off")
        except (httpx.TransportError, ValueError, LookupError, TypeError):
            yield _error(ApiError(502, "SGLang's answer broke off"))
        except ApiError as error:  # the status line is gone: the stream itself must say it
            yield _error(error)

    def _count(self, usage: dict[str, Any]) -> None:
        self._metrics.generated_tokens.inc(usage["completion_tokens"] or 0)

    def _check(self, param: str, got: int, limit: int, what: str = "here") -> None:
        if got > limit:
            message = f"{param}: at most {limit} {what} (got {got})"
            raise ApiError(400, message, "invalid_value", param)

    def _name(self) -> str:
        """Raises ApiError, 503, while SGLang is not ready."""
        return self._settings.served_model_name or self._sglang.model.name

    def card(self, name: str | None) -> dict[str, Any]:
        check_name(name, self._name())
        source = self._sglang.source
        return {
            "id": self._name(),
            "object": "model",
            "created": int(source.created.timestamp()) if source else self._started,
            "owned_by": "trainyard",
            "max_model_len": self._sglang.model.max_model_len,
            "max_tokens": self._settings.max_tokens,
            "chat": True,
            "step": source.step if source else None,
            "digest": source.digest if source else None,
        }


class _EventStream(StreamingResponse):
    """Server-sent events; whatever they hold is let go with them, even if they never began."""

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


def sglang_request(body: GenerationRequest, model: str) -> dict[str, Any]:
    """What SGLang is asked: our own fields only, null nowhere (it takes null for few of them)."""
    asked = body.model_dump(exclude_none=True, exclude={"stream_options"})
    if not body.stop:
        asked.pop("stop")
    if body.stream:
        asked["stream_options"] = {"include_usage": True}  # for the metrics
    return asked | {"model": model}


def create_forward_app(settings: GenerateSettings) -> FastAPI:
    """The ASGI app of a server whose model is on SGLang."""
    metrics = Metrics()
    known = settings.run_dir is not None or settings.model is not None
    place = place_of(settings) if known else None
    sglang = SGLang(settings, settings.poll_seconds, place=place)
    app = create_app(
        "Trainyard: generate",
        settings,
        sglang,
        metrics,
        form=openai_form,
        invalid=invalid_request,
    )
    Forward(settings, sglang, metrics).add_to(app)
    return app


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _error(error: ApiError) -> str:
    return f"data: {bytes(openai_form(error).body).decode()}\n\n"
