"""Engine sglang: sends requests to an SGLang server and returns its responses.

Clients see the same API, limits, errors and metrics as with engine torch.
"""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx

from trainyard_serving.concurrency import Gate
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.engine import JsonDict, ModelCard
from trainyard_serving.generate.openai_api import ChatRequest, CompletionRequest, GenerationRequest
from trainyard_serving.metrics import Metrics
from trainyard_serving.model_store.locations import location_of
from trainyard_serving.settings import GenerateSettings
from trainyard_serving.sglang import SGLang

DONE = "[DONE]"


class SGLangEngine:
    """Limits the requests that SGLang gets at a time; further ones wait here."""

    def __init__(self, settings: GenerateSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._started = int(time.time())
        self._gate = Gate(settings.max_running, settings.max_queue)
        metrics.queue_depth.set_function(lambda: self._gate.depth)
        has_location = settings.run_dir is not None or settings.model is not None
        location = location_of(settings) if has_location else None
        self.sglang = SGLang(settings, settings.poll_seconds, location=location)

    def model_card(self) -> ModelCard:
        model, source = self.sglang.model, self.sglang.source
        return ModelCard(
            self._settings.served_model_name or model.name,
            int(source.created.timestamp()) if source else self._started,
            model.max_model_len,
            True,
            source.step if source else None,
            source.digest if source else None,
        )

    async def complete(
        self, request: CompletionRequest, resources: AsyncExitStack
    ) -> "SGLangAnswer":
        if request.candidates > (request.n or 1):
            raise _unsupported("best_of", "best_of above n")
        if request.limit == 0:
            raise _unsupported("max_tokens", "max_tokens: 0")
        return await self._post("/v1/completions", request, {}, resources)

    async def chat(self, request: ChatRequest, resources: AsyncExitStack) -> "SGLangAnswer":
        # Without a limit SGLang would fill the model's whole context.
        limit = {} if request.limit else {"max_completion_tokens": self._settings.max_tokens}
        return await self._post("/v1/chat/completions", request, limit, resources)

    async def _post(
        self, path: str, request: GenerationRequest, more: JsonDict, resources: AsyncExitStack
    ) -> "SGLangAnswer":
        body = sglang_request(request, self.sglang.model.name) | more
        model_name = self.model_card().name
        await resources.enter_async_context(self._gate.admitted())
        started = time.monotonic()
        await resources.enter_async_context(self._gate.running())
        response = await resources.enter_async_context(self.sglang.post(path, body))
        return SGLangAnswer(response, model_name, request.include_usage, started, self._metrics)


class SGLangAnswer:
    """SGLang's response, with this server's name for the model."""

    def __init__(
        self,
        response: httpx.Response,
        model_name: str,
        include_usage: bool,
        started: float,
        metrics: Metrics,
    ) -> None:
        self.headers: Mapping[str, str] = {}
        self._http_response = response
        self._model_name = model_name
        self._include_usage = include_usage
        self._started = started
        self._metrics = metrics

    async def response(self) -> JsonDict:
        content = await self._http_response.aread()
        try:
            body: dict[str, Any] = json.loads(content)
            self._count(body["usage"])
        except (ValueError, LookupError, TypeError):
            raise ApiError(502, "SGLang sent an unexpected response", "model_failed") from None
        return body | {"model": self._model_name}

    async def events(self) -> AsyncIterator[JsonDict]:
        first = True
        try:
            async for line in self._http_response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == line:  # the empty line between events, or a comment
                    continue
                if data == DONE:
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ApiError(502, f"SGLang failed: {event['error']['message']}")
                if first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - self._started)
                    first = False
                if usage := event.get("usage"):
                    self._count(usage)
                if event["choices"] or self._include_usage:
                    yield event | {"model": self._model_name}
        except (httpx.TransportError, ValueError, LookupError, TypeError):
            pass
        raise ApiError(502, "SGLang's stream ended early")

    def _count(self, usage: JsonDict) -> None:
        self._metrics.generated_tokens.inc(usage["completion_tokens"] or 0)


def _unsupported(param: str, what: str) -> ApiError:
    message = f"{what} is not supported with engine sglang: leave it out"
    return ApiError(400, message, "unsupported_parameter", param)


def sglang_request(request: GenerationRequest, model: str) -> JsonDict:
    """The body for SGLang: only known fields, and none that is null (it rejects most nulls)."""
    body = request.model_dump(exclude_none=True, exclude={"stream_options", "best_of"})
    if not request.stop:
        body.pop("stop")
    if (include_stop := body.pop("include_stop_str_in_output", None)) is not None:
        body["no_stop_trim"] = include_stop
    if request.top_k == 0:
        body["top_k"] = -1  # of all tokens
    if request.stream:
        body["stream_options"] = {"include_usage": True}  # for the metrics
    return body | {"model": model}
