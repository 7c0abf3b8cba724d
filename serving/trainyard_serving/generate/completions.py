"""POST /v1/completions: text that goes on from each prompt."""

import time
import uuid
from typing import TYPE_CHECKING

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.answering import Answering
from trainyard_serving.generate.completion import PromptError
from trainyard_serving.generate.openai_api import CompletionAnswer, CompletionRequest
from trainyard_serving.settings import GenerateSettings

if TYPE_CHECKING:
    from trainyard_serving.generate.language_model import LanguageModel

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Completions:
    """Answers completion requests."""

    def __init__(self, settings: GenerateSettings, answering: Answering) -> None:
        self._settings = settings
        self._answering = answering

    async def answer(
        self, request: Request, body: CompletionRequest, model: "LanguageModel", name: str
    ) -> Response:
        """The response to `body`. Raises ApiError."""
        check, settings = self._answering.check_limit, self._settings
        sampling = body.sampling(body.max_tokens or DEFAULT_MAX_TOKENS)
        check("max_tokens", sampling.max_tokens, settings.max_tokens)
        check("prompt", len(body.prompt), settings.max_prompts, "prompts in one request")
        try:
            prompts = [await run_in_threadpool(model.encode, prompt) for prompt in body.prompt]
        except PromptError as error:
            raise ApiError(400, str(error), error.code, "prompt") from None
        answer = CompletionAnswer(
            f"cmpl-{uuid.uuid4().hex}",
            int(time.time()),
            name,
            sum(len(ids) for ids in prompts),
            len(prompts),
            body.prompt if body.echo else (),
        )
        return await self._answering.answer(request, body, model, prompts, sampling, answer)
