"""POST /v1/chat/completions of the vision server: OpenAI's messages with image_url parts."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trainyard_serving.errors import ApiError
from trainyard_serving.vision.question import invalid

MAX_TEXT = 65_536  # characters of all messages together
# Fields without an effect on the answer, and values of others that have none.
IGNORED = frozenset({"user", "metadata", "store"})
HARMLESS: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(_Strict):
    """An image to fetch, or a data: URI."""

    url: str = Field(description="http:// or https://, or data:image/TYPE;base64,DATA.")
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])
    ] = Field(min_length=1)

    def images(self) -> Iterator[ImageUrl]:
        """Its images, in their order."""
        return (part.image_url for part in self.content if isinstance(part, ImagePart))

    def text(self) -> str:
        """Its text, without its images."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class StreamOptions(_Strict):
    """Options of a streamed response."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_has_no_effect(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name in cls.model_fields
            or not (name in IGNORED or value is None or value in HARMLESS.get(name, ()))
        }

    @model_validator(mode="after")
    def _limits(self) -> "ChatRequest":
        if sum(len(message.text()) for message in self.messages) > MAX_TEXT:
            raise ValueError(f"messages: the texts have more than {MAX_TEXT} characters")
        for message in self.messages:
            if message.role != "user" and any(message.images()):
                raise ValueError(f"messages: only a user can send images, not {message.role}")
        return self

    @property
    def images(self) -> list[ImageUrl]:
        """The images of all messages, in their order."""
        return [image for message in self.messages for image in message.images()]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def read_chat(body: bytes, max_tokens: int, max_images: int) -> ChatRequest:
    """The request in `body`.

    Raises ApiError (400).
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, 400) from None
    for name in ("max_tokens", "max_completion_tokens"):
        if (getattr(request, name) or 0) > max_tokens:
            message = f"{name}: at most {max_tokens} here (got {getattr(request, name)})"
            raise ApiError(400, message, "invalid_value", name)
    if len(request.images) > max_images:
        message = f"messages: at most {max_images} images here (got {len(request.images)})"
        raise ApiError(400, message, "too_many_images", "messages")
    return request


def sglang_body(
    request: ChatRequest, model: str, max_tokens: int, data_uris: Sequence[str]
) -> dict[str, Any]:
    """The body for SGLang. It has no URL of the client's, which SGLang would fetch unchecked.

    Args:
        max_tokens: for a request that sets none.
        data_uris: of `request.images`.
    """
    uris = iter(data_uris)
    sampling = request.model_dump(
        include={"temperature", "top_p", "seed", "stop", "stream"}, exclude_none=True
    )
    if request.stream:
        sampling["stream_options"] = {"include_usage": True}  # for the metrics
    return {
        "model": model,
        "messages": [_sglang_message(message, uris) for message in request.messages],
        "max_completion_tokens": request.max_completion_tokens or request.max_tokens or max_tokens,
        **sampling,
    }


def _sglang_message(message: Message, uris: Iterator[str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if not any(message.images()):  # chat templates want text as a string
        return {"role": role, "content": message.text()}
    parts = [
        {"type": "image_url", "image_url": part.image_url.model_dump() | {"url": next(uris)}}
        if isinstance(part, ImagePart)
        else part.model_dump()
        for part in message.content
    ]
    return {"role": role, "content": parts}
