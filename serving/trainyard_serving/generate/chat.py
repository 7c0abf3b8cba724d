"""POST /v1/chat/completions: the assistant's next turn of a conversation."""

import time
import uuid
from typing import TYPE_CHECKING

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.answering import Answering
from trainyard_serving.generate.chat_api import ChatAnswer, ChatRequest
from trainyard_serving.generate.completion import PromptError
from trainyard_serving.settings import GenerateSettings

if TYPE_CHECKING:
    from trainyard_serving.generate.language_model import LanguageModel


class Chat:
    """Answers chat completion requests."""

    def __init__(self, settings: GenerateSettings, answering: Answering) -> None:
        self._settings = settings
        self._answering = answering

    async def answer(
        self, request: Request, body: ChatRequest, model: "LanguageModel", name: str
    ) -> Response:
        """The response to `body`. Raises ApiError."""
        newer = body.max_completion_tokens
        param = "max_tokens" if newer is None else "max_completion_tokens"
        asked = body.max_tokens if newer is None else newer
        limit = self._settings.max_tokens
        self._answering.check_limit(param, asked or 1, limit)
        turns = [message.model_dump() for message in body.messages]
        try:
            prompt = await run_in_threadpool(model.encode_chat, turns)
        except PromptError as error:
            raise ApiError(400, str(error), error.code, "messages") from None
        # Without a limit an answer may fill what is left of the context.
        room = max(1, model.context_length - len(prompt))
        sampling = body.sampling(asked or min(limit, room))
        answer = ChatAnswer(
            f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name, len(prompt), num_choices=1
        )
        return await self._answering.answer(request, body, model, [prompt], sampling, answer)
