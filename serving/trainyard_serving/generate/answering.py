"""From token ids to an HTTP answer, for every endpoint: queues the work, brings its text back
whole or streamed, and cancels it when the client goes away."""

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from trainyard_serving.disconnect import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.completion import Chunk, Sampling
from trainyard_serving.generate.job import Job, JobFailedError
from trainyard_serving.generate.openai_api import Answer, GenerationRequest, openai_form
from trainyard_serving.generate.worker import Worker
from trainyard_serving.metrics import Metrics
from trainyard_serving.settings import GenerateSettings

if TYPE_CHECKING:
    from trainyard_serving.generate.language_model import LanguageModel


class Answering:
    """Answers requests with the worker's help."""

    def __init__(self, settings: GenerateSettings, worker: Worker, metrics: Metrics) -> None:
        self._settings = settings
        self._worker = worker
        self._metrics = metrics

    def check_limit(self, param: str, got: int, limit: int, what: str = "here") -> None:
        """Raises ApiError when a request asks for more than this server allows."""
        if got > limit:
            message = f"{param}: at most {limit} {what} (got {got})"
            raise ApiError(400, message, "invalid_value", param)

    async def answer(
        self,
        request: Request,
        body: GenerationRequest,
        model: "LanguageModel",
        prompts: list[list[int]],
        sampling: Sampling,
        answer: Answer,
    ) -> Response:
        """The response to `body`; a client that goes away cancels its computation.

        Raises ApiError.
        """
        started = time.monotonic()
        # The digest of the model that answers, whatever is loaded when the answer goes out.
        headers = {"x-trainyard-digest": model.source.digest}
        job = self._worker.submit(model, prompts, sampling)
        chunks = self._counted(job, answer, started)
        if body.stream:
            return _EventStream(_events(chunks, answer, body.wants_usage), job, headers)
        try:
            whole = await unless_disconnected(request, _collect(chunks, answer))
        except JobFailedError as error:
            raise ApiError(500, str(error), headers=headers) from None
        finally:
            job.cancel()
        if whole is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse(whole, headers=headers)

    async def _counted(self, job: Job, answer: Answer, started: float) -> AsyncIterator[Chunk]:
        first = True
        async for chunk in job.results():
            if first:
                self._metrics.first_token_seconds.observe(time.monotonic() - started)
                first = False
            self._metrics.generated_tokens.inc(chunk.num_tokens)
            answer.count(chunk)
            yield chunk


class _EventStream(StreamingResponse):
    """Server-sent events whose job ends with them, even when they were never begun."""

    def __init__(self, events: AsyncIterator[str], job: Job, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _collect(chunks: AsyncIterator[Chunk], answer: Answer) -> dict[str, Any]:
    texts = [""] * answer.num_choices
    reasons: list[str | None] = [None] * len(texts)
    async for chunk in chunks:
        texts[chunk.index] += chunk.text
        reasons[chunk.index] = chunk.finish_reason
    return answer.whole(texts, reasons)


async def _events(
    chunks: AsyncIterator[Chunk], answer: Answer, wants_usage: bool
) -> AsyncIterator[str]:
    try:
        for event in answer.opening():
            yield _event(event)
        async for chunk in chunks:
            yield _event(answer.piece(chunk))
    except JobFailedError as error:  # the status line is gone: the stream itself must say it
        yield f"data: {bytes(openai_form(ApiError(500, str(error))).body).decode()}\n\n"
        return
    if wants_usage:
        yield _event(answer.usage_event())
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
