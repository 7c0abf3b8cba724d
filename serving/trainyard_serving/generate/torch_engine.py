"""Engine torch: answers requests with the model in this process, through its worker."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from trainyard_serving.app import not_ready
from trainyard_serving.concurrency import ComputingThreads
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.engine import Chunk, JsonDict, ModelCard, SamplingOptions
from trainyard_serving.generate.openai_api import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from trainyard_serving.generate.openai_responses import (
    ChatJson,
    CompletionJson,
    GeneratedText,
    ResponseJson,
    best_texts,
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

# Log-probabilities in one answer, with those of the most likely tokens: a few hundred bytes each,
# and encoding them as JSON takes CPU time from everything else.
MAX_LOGPROBS = 2**18
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
        options = request.sampling_options(request.limit)
        n = request.n or 1
        if request.echo:
            options = replace(options, prompt_logprobs=request.logprobs is not None)
        if request.candidates > n and options.logprobs is None:
            options = replace(options, logprobs=0)  # they decide which are the best
        echoed: list[str] = []
        if request.echo:
            skip = options.skip_special_tokens
            echoed = await self.threads.run(_echoed, model, request.prompt, skip)
        response = CompletionJson(
            f"cmpl-{uuid.uuid4().hex}",
            self._name_of(model),
            sum(len(ids) for ids in prompts),
            len(prompts) * n,
            None if request.logprobs is None else model.vocabulary,
            [text for text in echoed for _ in range(n)],
            options.skip_special_tokens,
        )
        job = self._submit(request, model, prompts, options, request.candidates, resources)
        choices = _Choices(len(prompts), request.candidates, n)
        return _Answer(job, response, choices, request.include_usage, self._metrics)

    async def chat(self, request: ChatRequest, resources: AsyncExitStack) -> "_Answer":
        model = self.current_model()
        messages = [message.for_template() for message in request.messages]
        prompt = await self.threads.run(model.encode_chat, messages, request.tools_for_template())
        n = request.n or 1
        response = ChatJson(
            f"chatcmpl-{uuid.uuid4().hex}",
            self._name_of(model),
            len(prompt),
            n,
            model.vocabulary if request.logprobs else None,
        )
        # Without a limit an answer may fill the rest of the context.
        rest = max(1, model.context_length - len(prompt))
        options = request.sampling_options(request.limit or min(self._settings.max_tokens, rest))
        form = request.response_format
        schema = form.schema_of_answer if form else None
        if schema is not None:
            options = replace(options, grammar=await self.threads.run(model.grammar, schema))
        job = self._submit(request, model, [prompt], options, n, resources)
        return _Answer(job, response, _Choices(1, n, n), request.include_usage, self._metrics)

    def _submit(
        self,
        request: GenerationRequest,
        model: "LanguageModel",
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        num_texts: int,
        resources: AsyncExitStack,
    ) -> Job:
        """Queue `num_texts` texts for each prompt, each with a seed of its own.

        Raises PromptError for tokens that the model does not have, and QueueFullError.
        """
        for param, ids in request.token_ids.items():
            model.check_tokens(ids, param)
        _check_logprobs(request, prompts, options, num_texts)
        job = self.worker.submit(
            model, prompts, *(_with_seed(options, number) for number in range(num_texts))
        )
        resources.callback(job.cancel)
        return job

    def current_model(self) -> "LanguageModel":
        """The model that answers now. Raises ApiError while there is none."""
        model = self.follower.model
        if model is None:
            raise not_ready(self.follower, self._settings)
        return model

    def _name_of(self, model: "LanguageModel") -> str:
        return self._settings.served_model_name or model.source.run


def _echoed(
    model: "LanguageModel", prompts: Sequence[str | list[int]], skip_special_tokens: bool
) -> list[str]:
    return [
        prompt if isinstance(prompt, str) else model.decode(prompt, skip_special_tokens)
        for prompt in prompts
    ]


def _with_seed(options: SamplingOptions, number: int) -> SamplingOptions:
    """For text `number` of a prompt: the first has the request's seed, the next one more."""
    if options.seed is None or number == 0:
        return options
    seed = options.seed + number
    return replace(options, seed=seed if seed < 2**63 else seed - 2**64)


def _check_logprobs(
    request: GenerationRequest,
    prompts: Sequence[list[int]],
    options: SamplingOptions,
    num_texts: int,
) -> None:
    """Raise ApiError when the texts would have too many log-probabilities."""
    if options.logprobs is None:
        return
    read = sum(len(prompt) for prompt in prompts) if options.prompt_logprobs else 0
    tokens = num_texts * (read + len(prompts) * options.max_tokens)
    if (total := tokens * (1 + options.logprobs)) > MAX_LOGPROBS:
        field, advice = request.field_of_logprobs
        raise ApiError(
            400,
            f"{field}: it takes up to {total} log-probabilities, of which {MAX_LOGPROBS} are"
            f" allowed in one request: {advice}",
            "invalid_value",
            field,
        )


@dataclass(frozen=True)
class _Choices:
    """How many texts are generated for the prompts of a request, and returned."""

    num_prompts: int
    num_candidates: int  # of each prompt
    num_best: int  # of these


class _Answer:
    """The chunks of a job as OpenAI's JSON."""

    def __init__(
        self,
        job: Job,
        response: ResponseJson,
        choices: _Choices,
        include_usage: bool,
        metrics: Metrics,
    ) -> None:
        # The digest of the model that answers; a newer one may be loaded before the answer ends.
        self.headers = {DIGEST_HEADER.decode(): job.model.source.digest}
        self._job = job
        self._json = response
        self._choices = choices
        self._include_usage = include_usage
        self._metrics = metrics
        self._started = time.monotonic()

    async def response(self) -> JsonDict:
        choices = self._choices
        texts = [GeneratedText() for _ in range(choices.num_prompts * choices.num_candidates)]
        async for chunk in self._chunks():
            texts[chunk.index].add(chunk)
        best = best_texts(texts, choices.num_candidates, choices.num_best)
        # Many log-probabilities take a while, and the event loop must go on.
        return await run_in_threadpool(self._json.response, best)

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


def _encode_all(
    model: "LanguageModel", prompts: Sequence[str] | Sequence[list[int]]
) -> list[list[int]]:
    return [_encode(model, prompt) for prompt in prompts]


def _encode(model: "LanguageModel", prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return model.encode(prompt)
    model.check_prompt(prompt)
    return prompt


def _load(settings: GenerateSettings, source: VerifiedModel) -> "LanguageModel":
    from trainyard_serving.generate.language_model import LanguageModel

    return LanguageModel.load(source, settings.device, settings.threads)
