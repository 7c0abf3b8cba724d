"""A small, strict stand-in for an SGLang server: its protocol (0.5.23), without its model.

Paths, fields, error forms and server-sent events are SGLang's. It is stricter where SGLang would
let a mistake of ours pass: unknown fields and images that are not data: URIs are refused. What
SGLang computes, on its GPU, is not tested here. End-to-end tests run this file in a pod: it
imports nothing that the serving image lacks.
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    include_usage: bool | None = False


class Sampled(Strict):
    """Fields that both requests have; SGLang takes null where the type here does."""

    model: str = "default"
    n: int = 1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[str, float] | None = None
    min_tokens: int = 0
    stop_token_ids: list[int] | None = None
    no_stop_trim: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


class Completion(Sampled):
    prompt: list[int] | list[list[int]] | str | list[str]
    echo: bool = False
    logprobs: int | None = None
    max_tokens: Annotated[int, Field(gt=0)] = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = "auto"


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: str | list[ImagePart | TextPart]


class Chat(Sampled):
    messages: list[Message]
    logprobs: bool = False
    top_logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class StandIn:
    """Its state, which tests change as they go."""

    def __init__(self, name: str = "qwen2-vl", path: str = "Qwen/Qwen2-VL-7B-Instruct") -> None:
        self.name = name
        self.path = path
        self.loading = False
        self.takes_images = True
        self.api_key: str | None = None
        self.failure: tuple[int, Any] | None = None  # answered to every request for text
        self.ending: str | None = None  # of streams: with an "error", or a "break"
        self.held = False  # whether answers wait until their client has left
        self.waiting = 0  # requests that were held
        self.cancelled = 0  # requests whose client left before the end
        self.requests: list[Any] = []
        self.url = ""

    def error(self, status: int, message: str, kind: str = "BadRequestError") -> JSONResponse:
        body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
        return JSONResponse(body, status)

    async def hold(self, request: Request) -> None:
        if self.held:
            self.waiting += 1
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.cancelled += 1

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.exception_handler(RequestValidationError)
        async def invalid(request: Request, error: RequestValidationError) -> Response:
            return self.error(400, f"{error} {error.errors()}", "Bad Request")

        @app.middleware("http")
        async def key(request: Request, call_next: Any) -> Response:
            path, sent = request.url.path, request.headers.get("authorization")
            is_open = path.startswith(("/health", "/ready", "/metrics"))
            if self.api_key and not is_open and sent != f"Bearer {self.api_key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            answer: Response = await call_next(request)
            return answer

        @app.get("/ready")
        async def ready() -> Response:
            return Response(status_code=503 if self.loading else 200)

        @app.get("/model_info")
        async def model_info() -> dict[str, Any]:
            return {
                "model_path": self.path,
                "served_model_name": self.name,
                "is_generation": True,
                "has_image_understanding": self.takes_images,
            }

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            card = {"id": self.name, "object": "model", "created": 1, "owned_by": "sglang"}
            card |= {"root": self.name, "parent": None, "max_model_len": 32768}
            return {"object": "list", "data": [card]}

        async def json_only(request: Request) -> None:
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                raise RequestValidationError([{"loc": ["header"], "msg": "only JSON", "type": "x"}])

        @app.post("/v1/completions", dependencies=[Depends(json_only)])
        async def completions(request: Request, body: Completion) -> Response:
            prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
            return await self.answer(request, body, _TextForm(self.name, prompts, body))

        @app.post("/v1/chat/completions", dependencies=[Depends(json_only)])
        async def chat(request: Request, body: Chat) -> Response:
            if not body.messages:
                return self.error(400, "Messages cannot be empty.")
            for message in body.messages:
                for part in message.content if isinstance(message.content, list) else []:
                    if isinstance(part, ImagePart) and not _is_picture(part.image_url.url):
                        return self.error(400, "not a data: URI of a picture", "BadRequest")
            return await self.answer(request, body, _ChatForm(self.name, body))

        return app

    async def answer(self, request: Request, body: Sampled, form: "_Form") -> Response:
        self.requests.append(body)
        if self.failure:
            status, message = self.failure
            return (
                self.error(status, message)
                if isinstance(message, str)
                else JSONResponse(message, status)
            )
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            events = self.stream(form, usage)
            return StreamingResponse(events, media_type="text/event-stream")
        await self.hold(request)
        return JSONResponse(form.whole())

    async def stream(self, form: "_Form", usage: bool) -> AsyncIterator[str]:
        done = False
        try:
            for piece in form.pieces():
                yield f"data: {json.dumps(piece)}\n\n"
            if self.held:
                self.waiting += 1
                await asyncio.Event().wait()  # until the client leaves
            if self.ending == "error":
                error = {"object": "error", "message": "CUDA error", "type": "x", "code": 500}
                yield f"data: {json.dumps({'error': error})}\n\n"
            if self.ending == "break":
                done = True
                return
            if usage:
                yield f"data: {json.dumps(form.piece([]) | {'usage': form.usage()})}\n\n"
            yield "data: [DONE]\n\n"
            done = True
        finally:
            self.cancelled += not done


class _Form:
    """Answers in one request's form; the text is the words `one two three ...`."""

    object = ""

    def __init__(self, name: str, num_choices: int, num_tokens: int) -> None:
        words = ["one", "two", "three", "four", "five"]
        self.head = {"id": "1f", "created": int(time.time()), "model": name}
        self.words = [f"{words[i % 5]} " for i in range(num_tokens)]
        self.num_choices = num_choices

    def usage(self) -> dict[str, Any]:
        made, read = len(self.words) * self.num_choices, 7
        counts = {"prompt_tokens": read, "total_tokens": made + read, "completion_tokens": made}
        return counts | {"prompt_tokens_details": None, "reasoning_tokens": 0}

    def piece(self, choices: list[Any]) -> dict[str, Any]:
        return self.head | {"object": self.object, "choices": choices, "usage": None}

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def pieces(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


class _TextForm(_Form):
    object = "text_completion"

    def __init__(self, name: str, prompts: list[Any], body: Completion) -> None:
        super().__init__(name, len(prompts), body.max_tokens)

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        end = {"finish_reason": reason, "matched_stop": None}
        return {"index": index, "text": text, "logprobs": None, **end}

    def whole(self) -> dict[str, Any]:
        text = "".join(self.words)
        choices = [self.choice(index, text, "length") for index in range(self.num_choices)]
        head = {**self.head, "object": self.object, "choices": choices, "usage": self.usage()}
        return head | {"metadata": {"weight_version": "default"}}

    def pieces(self) -> Iterator[dict[str, Any]]:
        for index in range(self.num_choices):
            for word in self.words:
                yield self.piece([self.choice(index, word, None)])
            yield self.piece([self.choice(index, "", "length")])


class _ChatForm(_Form):
    object = "chat.completion"

    def __init__(self, name: str, body: Chat) -> None:
        super().__init__(name, 1, body.max_completion_tokens or body.max_tokens or 5)

    def whole(self) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": "".join(self.words),
            "reasoning_content": None,
            "tool_calls": None,
        }
        end = {"logprobs": None, "finish_reason": "length", "matched_stop": None}
        choices = [{"index": 0, "message": message, **end}]
        return {**self.head, "object": self.object, "choices": choices, "usage": self.usage()}

    def delta(self, content: str | None, reason: str | None, role: str | None = None) -> Any:
        delta = {"role": role, "content": content, "reasoning_content": None, "tool_calls": None}
        end = {"logprobs": None, "finish_reason": reason, "matched_stop": None}
        piece = self.piece([{"index": 0, "delta": delta, **end}])
        return piece | {"object": "chat.completion.chunk"}

    def pieces(self) -> Iterator[dict[str, Any]]:
        yield self.delta("", None, "assistant")
        for word in self.words:
            yield self.delta(word, None)
        yield self.delta(None, "length")


def _is_picture(url: str) -> bool:
    head, _, data = url.partition(",")
    if head != "data:image/jpeg;base64":
        return False
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image.mode == "RGB"
