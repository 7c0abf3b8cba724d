"""/tokenize and /detokenize, in vLLM's form: the token ids that the model would read."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trainyard_serving.generate.engine import JsonDict
from trainyard_serving.generate.messages import Message, Tool, valid_text
from trainyard_serving.generate.torch_engine import TorchEngine

if TYPE_CHECKING:  # importing torch takes seconds, and the server must answer before that
    from trainyard_serving.generate.language_model import LanguageModel


def _valid_prompt(prompt: str) -> str:
    return valid_text(prompt, "prompt")


class TokenizeRequest(BaseModel):
    """Body of POST /tokenize: a prompt, or messages."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: Annotated[str, AfterValidator(_valid_prompt)] | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="Default: true for a prompt; a chat template adds its own."
    )
    add_generation_prompt: bool = Field(
        default=True, description="With messages: the beginning of the assistant's next message."
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_input(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """Body of POST /detokenize."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


class TokenizationRoutes:
    """The routes, for engine torch. Their docstrings are their descriptions in OpenAPI."""

    def __init__(self, engine: TorchEngine, check_name: Callable[[str | None], None]) -> None:
        """`check_name` raises ApiError for another model's name."""
        self._engine = engine
        self._check_name = check_name

    def add_to(self, app: FastAPI) -> None:
        for path, route in (("/tokenize", self.tokenize), ("/detokenize", self.detokenize)):
            app.add_api_route(path, route, methods=["POST"], response_model=None)

    async def tokenize(self, body: TokenizeRequest) -> JsonDict:
        """Token ids of a prompt or a conversation, refused as a completion would refuse it."""
        self._check_name(body.model)
        model = self._engine.current_model()
        ids = await self._engine.threads.run(_encode, model, body)
        strings = model.token_strings(ids) if body.return_token_strs else None
        return {
            "count": len(ids),
            "max_model_len": model.context_length,
            "tokens": ids,
            "token_strs": strings,
        }

    async def detokenize(self, body: DetokenizeRequest) -> JsonDict:
        """The text of token ids."""
        self._check_name(body.model)
        model = self._engine.current_model()
        model.check_tokens(body.tokens, "tokens")
        return {"prompt": await self._engine.threads.run(model.decode, body.tokens, False)}


def _encode(model: "LanguageModel", body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return model.encode(body.prompt, body.add_special_tokens is not False)
    return model.encode_chat(
        [message.for_template() for message in body.messages or ()],
        [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        body.add_generation_prompt,
        body.add_special_tokens is True,
    )
