"""The text generation server: OpenAI's API over one exported model."""

from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from trainyard_serving.app import create_app, not_ready
from trainyard_serving.follower import Follower
from trainyard_serving.generate.answering import Answering
from trainyard_serving.generate.chat import Chat
from trainyard_serving.generate.chat_api import ChatRequest
from trainyard_serving.generate.completions import Completions
from trainyard_serving.generate.forward import create_forward_app
from trainyard_serving.generate.openai_api import CompletionRequest, invalid_request, openai_form
from trainyard_serving.generate.routes import OpenAIRoutes, check_name
from trainyard_serving.generate.worker import Worker
from trainyard_serving.metrics import Metrics
from trainyard_serving.places import place_of
from trainyard_serving.settings import GenerateSettings
from trainyard_serving.verified import VerifiedModel

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.generate.language_model import LanguageModel

COMPUTED = frozenset({"/v1/completions", "/v1/chat/completions"})


class Routes(OpenAIRoutes):
    """The routes of this app."""

    def __init__(
        self,
        settings: GenerateSettings,
        follower: "Follower[LanguageModel]",
        completions: Completions,
        chat: Chat,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._completions = completions
        self._chat = chat

    async def completions(self, request: Request, body: CompletionRequest) -> Response:
        """Text that goes on from the prompt, whole or streamed as server-sent events."""
        model = self._model(body.model)
        return await self._completions.answer(request, body, model, self._name(model))

    async def chat_completions(self, request: Request, body: ChatRequest) -> Response:
        """The assistant's next turn, whole or streamed as server-sent events."""
        model = self._model(body.model)
        return await self._chat.answer(request, body, model, self._name(model))

    def _model(self, name: str | None) -> "LanguageModel":
        """The model, if it is there (else 503) and is the one asked for (else 404)."""
        model = self._follower.model
        if model is None:
            raise not_ready(self._follower, self._settings)
        check_name(name, self._name(model))
        return model

    def _name(self, model: "LanguageModel") -> str:
        return self._settings.served_model_name or model.source.run

    def card(self, name: str | None) -> dict[str, Any]:
        model = self._model(name)
        source = model.source
        return {
            "id": self._name(model),
            "object": "model",
            "created": int(source.created.timestamp()),
            "owned_by": "trainyard",
            "max_model_len": model.context_length,
            "max_tokens": self._settings.max_tokens,
            "chat": model.chats,
            "step": source.step,
            "digest": source.digest,
        }


def create_generate_app(settings: GenerateSettings) -> FastAPI:
    """The server's ASGI app; the model is loaded once its lifespan begins."""
    if settings.engine == "sglang":
        return create_forward_app(settings)
    metrics = Metrics()
    worker = Worker(settings.max_queue, settings.max_batch_size, metrics)
    metrics.queue_depth.set_function(lambda: worker.depth)
    follower: Follower[LanguageModel] = Follower(
        place_of(settings), partial(_load, settings), settings.poll_seconds, metrics
    )
    app = create_app(
        "Trainyard: generate",
        settings,
        follower,
        metrics,
        form=openai_form,
        invalid=invalid_request,
        beside=[worker],
        roll_back=follower.roll_back,
        computed=COMPUTED,
        full=worker.full,
    )
    answering = Answering(settings, worker, metrics)
    routes = Routes(settings, follower, Completions(settings, answering), Chat(settings, answering))
    routes.add_to(app)
    return app


def _load(settings: GenerateSettings, source: VerifiedModel) -> "LanguageModel":
    from trainyard_serving.generate.language_model import LanguageModel

    return LanguageModel.load(source, settings.device, settings.threads)
