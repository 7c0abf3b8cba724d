"""Engine torch: answers requests with the model in this process, through its worker."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from trainyard_serving.app import not_ready
from trainyard_serving.concurrency import ComputingThreads
from trainyard_serving.generate.engine import Chunk, JsonDict, ModelCard, SamplingOptions
from trainyard_serving.generate.openai_api import (
    DEFAULT_MAX_TOKENS,
    ChatJson,
    ChatRequest,
    CompletionJson,
    CompletionRequest,
    GenerationRequest,
    ResponseJson,
)
from trainyard_serving.generate.worker import Job, Worker
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import DIGEST_HEADER
from trainyard_serving.model_store.follower import Follower
from trainyard_serving.model_store.locations import location_of
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_serving.settings import GenerateSettings

if TYPE_CHECKING:  # importing torch takes seconds, and the server must answer before that
    from trainyard_serving.generate.language_model import LanguageModel

# Prompts that are tokenised at a time: their memory adds up.
ENCODING_THREADS = 2


class TorchEngine:
    """Encodes prompts, queues them, and brings their texts back.

    Attributes:
        threads: encode prompts, and compute whatever else a request needs before its first token.
    """

    def __init__(self, settings: GenerateSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.worker = Worker(settings.max_queue, settings.max_batch_size, metrics)
        self.threads = ComputingThreads(
            ENCODING_THREADS, settings.max_batch_size + settings.max_queue, "encoder"
        )
        metrics.queue_depth.set_function(lambda: self.worker.depth)
        self.follower: Follower[LanguageModel] = Follower(
            location_of(settings), partial(_load, settings), settings.poll_seconds, metrics
        )

    def model_card(self) -> ModelCard:
        model = self.current_model()
        return ModelCard(
            self._name_of(model),
            int(model.source.created.timestamp()),
            model.context_length,
            model.has_chat_template,
            model.source.step,
            model.source.digest,
        )

    async def complete(self, request: CompletionRequest, resources: AsyncExitStack) -> "_Answer":
        model = self.current_model()
        prompts = await self.threads.run(_encode_all, model, request.prompt)
        response = CompletionJson(
            f"cmpl-{uuid.uuid4().hex}",
            self._name_of(model),
            sum(len(ids) for ids in prompts),
            len(prompts),
            request.prompt if request.echo else (),
        )
        options = request.sampling_options(request.max_tokens or DEFAULT_MAX_TOKENS)
        return self._submit(request, model, prompts, options, response, resources)

    async def chat(self, request: ChatRequest, resources: AsyncExitStack) -> "_Answer":
        model = self.current_model()
        messages = [message.for_template() for message in request.messages]
        prompt = await self.threads.run(model.encode_chat, messages, request.tools_for_template())
        response = ChatJson(
            f"chatcmpl-{uuid.uuid4().hex}", self._name_of(model), len(prompt), num_choices=1
        )
        # Without a limit an answer may fill the rest of the context.
        rest = max(1, model.context_length - len(prompt))
        options = request.sampling_options(request.limit or min(self._settings.max_tokens, rest))
        form = request.response_format
        schema = form.schema_of_answer if form else None
        if schema is not None:
            options = replace(options, grammar=await self.threads.run(model.grammar, schema))
        return self._submit(request, model, [prompt], options, response, resources)

    def _submit(
        self,
        request: GenerationRequest,
        model: "LanguageModel",
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        response: ResponseJson,
        resources: AsyncExitStack,
    ) -> "_Answer":
        """Raises QueueFullError."""
        job = self.worker.submit(model, prompts, options)
        resources.callback(job.cancel)
        return _Answer(job, response, request.include_usage, self._metrics)

    def current_model(self) -> "LanguageModel":
        """The model that answers now. Raises ApiError while there is none."""
        model = self.follower.model
        if model is None:
            raise not_ready(self.follower, self._settings)
        return model

    def _name_of(self, model: "LanguageModel") -> str:
        return self._settings.served_model_name or model.source.run


class _Answer:
    """The chunks of a job as OpenAI's JSON."""

    def __init__(
        self, job: Job, response: ResponseJson, include_usage: bool, metrics: Metrics
    ) -> None:
        # The digest of the model that answers; a newer one may be loaded before the answer ends.
        self.headers = {DIGEST_HEADER.decode(): job.model.source.digest}
        self._job = job
        self._json = response
        self._include_usage = include_usage
        self._metrics = metrics
        self._started = time.monotonic()

    async def response(self) -> JsonDict:
        texts = [""] * self._json.num_choices
        reasons: list[str | None] = [None] * len(texts)
        async for chunk in self._chunks():
            texts[chunk.index] += chunk.text
            reasons[chunk.index] = chunk.finish_reason
        return self._json.response(texts, reasons)

    async def events(self) -> AsyncIterator[JsonDict]:
        for event in self._json.first_events():
            yield event
        async for chunk in self._chunks():
            yield self._json.event(chunk)
        if self._include_usage:
            yield self._json.usage_event()

    async def _chunks(self) -> AsyncIterator[Chunk]:
        first = True
        async for chunk in self._job.chunks():
            if first:
                self._metrics.first_token_seconds.observe(time.monotonic() - self._started)
                first = False
            self._metrics.generated_tokens.inc(chunk.num_tokens)
            self._json.count(chunk)
            yield chunk


def _encode_all(model: "LanguageModel", prompts: Sequence[str]) -> list[list[int]]:
    return [model.encode(prompt) for prompt in prompts]


def _load(settings: GenerateSettings, source: VerifiedModel) -> "LanguageModel":
    from trainyard_serving.generate.language_model import LanguageModel

    return LanguageModel.load(source, settings.device, settings.threads)
