"""OpenAI's protocol: the requests and answers of /v1/chat/completions."""

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trainyard_serving.generate.completion import Chunk
from trainyard_serving.generate.openai_api import (
    UNSUPPORTED,
    Answer,
    GenerationRequest,
    JsonDict,
    Unsupported,
    valid_text,
)


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


def _content(value: object) -> str:
    if isinstance(value, list) and value:
        value = "".join(_part_text(part) for part in value)
    if not isinstance(value, str):
        raise ValueError("content must be a string, or a list of text parts")
    return valid_text(value, "content")


def _part_text(part: object) -> str:
    try:
        return TextPart.model_validate(part).text
    except ValidationError:
        raise ValueError(
            'content: this model reads text: a part must be {"type": "text", "text": "..."}'
        ) from None


Content = Annotated[str, BeforeValidator(_content, json_schema_input_type=str | list[TextPart])]


class Message(BaseModel):
    """One turn of the conversation.

    An answer's message can be sent back as it came: its other fields are empty.
    """

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_fields(cls, data: object) -> object:
        if isinstance(data, dict):
            for name in data.keys() - {"role", "content"}:
                if data[name] not in (None, []):
                    raise ValueError(f"{name} is not supported: leave it out")
        return data


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED,
        "top_logprobs": (None,),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
    }

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        newer, older = self.max_completion_tokens, self.max_tokens
        if None not in (newer, older) and newer != older:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self


class ChatAnswer(Answer):
    """The answers of /v1/chat/completions; there is one choice."""

    def opening(self) -> Iterable[JsonDict]:
        return [self._event({"role": "assistant", "content": ""}, None)]

    def piece(self, chunk: Chunk) -> JsonDict:
        return self._event({"content": chunk.text} if chunk.text else {}, chunk.finish_reason)

    def usage_event(self) -> JsonDict:
        return self._part() | {"choices": [], "usage": self.usage()}

    def whole(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        head = self._head | {"object": "chat.completion"}
        return head | {"choices": choices, "usage": self.usage()}

    def _event(self, delta: JsonDict, finish_reason: str | None) -> JsonDict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._part() | {"choices": [choice]}

    def _part(self) -> JsonDict:
        return self._head | {"object": "chat.completion.chunk"}
