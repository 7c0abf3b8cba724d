"""OpenAI's routes, as they are whether the model is in this process or on SGLang."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from trainyard_serving.app import page
from trainyard_serving.errors import ApiError
from trainyard_serving.generate.chat_api import ChatRequest
from trainyard_serving.generate.openai_api import CompletionRequest

PAGE = Path(__file__).with_name("page.html")


class OpenAIRoutes(ABC):
    """A server of one model; the docstrings of its routes are their descriptions."""

    @abstractmethod
    def card(self, name: str | None) -> dict[str, Any]:
        """The model (of that name), in OpenAI's form.

        Raises ApiError: 503 while there is none, 404 when it is called otherwise.
        """

    @abstractmethod
    async def completions(self, request: Request, body: CompletionRequest) -> Response: ...

    @abstractmethod
    async def chat_completions(self, request: Request, body: ChatRequest) -> Response: ...

    async def models(self) -> dict[str, Any]:
        """The one model, in OpenAI's form."""
        return {"object": "list", "data": [self.card(None)]}

    async def one_model(self, name: str) -> dict[str, Any]:
        """The model by its name."""
        return self.card(name)

    async def page(self) -> HTMLResponse:
        """A page to try the model by hand."""
        return page(PAGE)

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route("/v1/models", self.models, response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.one_model, response_model=None)
        for path, route in (
            ("/v1/completions", self.completions),
            ("/v1/chat/completions", self.chat_completions),
        ):
            app.add_api_route(path, route, methods=["POST"], response_model=None)
        app.add_api_route("/", self.page, response_class=HTMLResponse, include_in_schema=False)


def check_name(name: str | None, served: str) -> None:
    """Raises ApiError when another model is asked for."""
    if name not in (None, served):
        message = f"no model {name!r} here: this server has {served!r}"
        raise ApiError(404, message, "model_not_found", "model")
