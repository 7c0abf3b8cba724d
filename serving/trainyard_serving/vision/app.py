"""The vision server: answers questions about images, with a model on SGLang."""

import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool

from trainyard_serving.app import create_app
from trainyard_serving.concurrency import Gate
from trainyard_serving.connections import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.app import EventStream, server_sent_events
from trainyard_serving.generate.openai_api import openai_error_response
from trainyard_serving.generate.sglang_engine import SGLangAnswer
from trainyard_serving.metrics import Metrics
from trainyard_serving.pages import page
from trainyard_serving.settings import VisionSettings
from trainyard_serving.sglang import SGLang
from trainyard_serving.vision.chat import ChatRequest, read_chat, sglang_body
from trainyard_serving.vision.data_uri import is_data_uri, read_data_uri
from trainyard_serving.vision.decoders import DecodedImage, DecoderLimits, Decoders
from trainyard_serving.vision.fetch import Fetcher, FetchLimits
from trainyard_serving.vision.question import (
    REQUEST_BODY,
    AnswerBody,
    ImageSize,
    Question,
    read_body,
    read_question,
)

PAGE = Path(__file__).with_name("page.html")
CHAT = "/v1/chat/completions"
CHAT_BODY = {"content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The URL or the body is not accepted; the message says why."},
    401: {"description": "No valid API key."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "Too large: the body, or the image in bytes or pixels."},
    415: {"description": "Not an image in a supported format."},
    422: {"description": "A field is invalid, or the image could not be fetched or read."},
    429: {"description": "Too many requests are waiting; see Retry-After."},
    502: {"description": "SGLang failed on this request."},
    503: {"description": "SGLang is unavailable, loading or busy; see Retry-After."},
    504: {"description": "SGLang did not answer in time."},
}


class Routes:
    """The app's own routes."""

    def __init__(
        self,
        settings: VisionSettings,
        sglang: SGLang,
        fetcher: Fetcher,
        decoders: Decoders,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._sglang = sglang
        self._fetcher = fetcher
        self._decoders = decoders
        self._metrics = metrics
        self._gate = Gate(settings.max_running, settings.max_queue)
        metrics.queue_depth.set_function(lambda: self._gate.depth)

    async def page(self) -> HTMLResponse:
        """A page to try the model."""
        return page(PAGE)

    async def answer(self, request: Request) -> Response:
        """The model's answer to a question about an image."""
        settings = self._settings
        self._sglang.model  # noqa: B018  (raises 503 before the body is read)
        async with self._gate.admitted():
            question = await read_question(request, settings.max_image_bytes)
            body = await unless_disconnected(request, self._answer(question))
        if body is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return Response(body.model_dump_json(), media_type="application/json")

    async def chat_completions(self, request: Request) -> Response:
        """The assistant's next message about texts and images, in one response or streamed."""
        settings = self._settings
        self._sglang.model  # noqa: B018  (raises 503 before the body is read)
        async with AsyncExitStack() as resources:
            await resources.enter_async_context(self._gate.admitted())
            body = await read_body(request)
            chat = await run_in_threadpool(
                read_chat, body, settings.max_tokens, settings.max_images
            )
            del body
            answer = await unless_disconnected(request, self._chat(chat, resources))
            if answer is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            if chat.stream:
                return EventStream(server_sent_events(answer), resources.pop_all())
            content = await unless_disconnected(request, answer.response())
        if content is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(content)

    async def _chat(self, chat: ChatRequest, resources: AsyncExitStack) -> SGLangAnswer:
        name = self._sglang.model.name
        if chat.model not in (None, name):
            message = f"no model {chat.model!r} here: this server has {name!r}"
            raise ApiError(404, message, "model_not_found", "model")
        started = time.monotonic()
        await resources.enter_async_context(self._gate.running())
        images = [await self._image(image.url) for image in chat.images]
        uris = [image.data_uri for image in images]
        body = sglang_body(chat, name, self._settings.max_tokens, uris)
        response = await resources.enter_async_context(self._sglang.post(CHAT, body))
        return SGLangAnswer(response, name, chat.include_usage, started, self._metrics)

    async def _image(self, url: str) -> DecodedImage:
        """The image at a URL, or in a data: URI."""
        if is_data_uri(url):
            data = await run_in_threadpool(read_data_uri, url, self._settings.max_image_bytes)
        else:
            data = await self._fetcher.fetch(url)
        return await self._decoders.decode(data)

    async def _answer(self, question: Question) -> AnswerBody:
        started = time.monotonic()
        async with self._gate.running():
            if question.image_url is not None:
                image = await self._image(question.image_url)
            else:
                assert question.image is not None
                image = await self._decoders.decode(question.image)
            completion = await self._complete(question, image.data_uri)
        usage = completion.get("usage") or {}
        self._metrics.generated_tokens.inc(usage.get("completion_tokens") or 0)
        return AnswerBody(
            answer=completion["choices"][0]["message"]["content"] or "",
            model=completion["model"],
            usage=usage,
            image=ImageSize(width=image.width, height=image.height),
            seconds=round(time.monotonic() - started, 3),
        )

    async def _complete(self, question: Question, image_uri: str) -> dict[str, Any]:
        body = chat_request(
            self._sglang.model.name,
            question.text,
            image_uri,
            min(question.max_tokens or self._settings.max_tokens, self._settings.max_tokens),
        )
        async with self._sglang.post(CHAT, body) as response:
            text = await response.aread()
        try:
            completion: dict[str, Any] = json.loads(text)
            completion["choices"][0]["message"]["content"], completion["model"]
        except (ValueError, LookupError, TypeError):
            raise ApiError(502, "SGLang sent an unexpected response", "model_failed") from None
        return completion


def chat_request(model: str, question: str, image_uri: str, max_tokens: int) -> dict[str, Any]:
    """The body for SGLang. It never has the image's URL, which SGLang would fetch unchecked."""
    content = [
        {"type": "image_url", "image_url": {"url": image_uri}},
        {"type": "text", "text": question},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_completion_tokens": max_tokens}


def create_vision_app(settings: VisionSettings, fetcher: Fetcher | None = None) -> FastAPI:
    """The ASGI app. Only tests pass a fetcher."""
    metrics = Metrics()
    sglang = SGLang(settings, settings.poll_seconds, settings.model_name, needs_images=True)
    decoders = Decoders(decoder_limits(settings))
    app = create_app(
        "Trainyard: vision",
        settings,
        sglang,
        metrics,
        error_response=openai_error_response,
        parts=[decoders],
    )
    routes = Routes(settings, sglang, fetcher or Fetcher(limits(settings)), decoders, metrics)
    app.add_api_route(
        "/answer",
        routes.answer,
        methods=["POST"],
        response_model=AnswerBody,
        responses=ERRORS,
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    app.add_api_route(
        CHAT,
        routes.chat_completions,
        methods=["POST"],
        response_model=None,
        responses=ERRORS,
        openapi_extra={"requestBody": {"required": True} | CHAT_BODY},
    )
    app.add_api_route("/", routes.page, response_class=HTMLResponse, include_in_schema=False)
    return app


def limits(settings: VisionSettings) -> FetchLimits:
    """The limits on fetching images."""
    hosts = settings.allow_private_hosts.lower().split(",")
    return FetchLimits(
        seconds=settings.fetch_seconds,
        max_bytes=settings.max_image_bytes,
        ports=frozenset(int(port) for port in settings.allowed_ports.split(",")),
        private_hosts=frozenset(host.strip() for host in hosts if host.strip()),
    )


def decoder_limits(settings: VisionSettings) -> DecoderLimits:
    """The limits on decoding images."""
    return DecoderLimits(
        processes=settings.decoders,
        memory=settings.decoder_memory_bytes,
        seconds=settings.decoder_seconds,
        max_pixels=settings.max_image_pixels,
        max_side=settings.max_image_side,
    )
