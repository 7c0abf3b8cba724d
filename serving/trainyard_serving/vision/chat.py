"""POST /v1/chat/completions of the vision server: OpenAI's messages with image_url parts."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.messages import AnyMessage, TextPart
from trainyard_serving.generate.openai_request import HarmlessValues, OpenAIChatRequest
from trainyard_serving.vision.question import invalid

MAX_TEXT = 65_536  # characters of all messages together
# Values of fields that are not supported, which have no effect.
HARMLESS: HarmlessValues = {
    **OpenAIChatRequest.harmless,
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
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


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(AnyMessage):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])
    ] = Field(min_length=1)

    def images(self) -> Iterator[ImageUrl]:
        """Its images, in their order."""
        return (part.image_url for part in self.content if isinstance(part, ImagePart))

    def text(self) -> str:
        """Its text, without its images."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class ChatRequest(OpenAIChatRequest):
    """The body of POST /v1/chat/completions."""

    harmless: ClassVar[HarmlessValues] = HARMLESS

    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None

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


def read_chat(body: bytes, max_tokens: int, max_images: int) -> ChatRequest:
    """The request in `body`.

    Raises ApiError (400).
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, 400) from None
    if (request.limit or 0) > max_tokens:
        name = request.limit_field
        message = f"{name}: at most {max_tokens} here (got {request.limit})"
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
        "max_completion_tokens": request.limit or max_tokens,
        **sampling,
    }


def _sglang_message(message: Message, uris: Iterator[str]) -> dict[str, Any]:
    if not any(message.images()):  # chat templates want text as a string
        return {"role": message.role, "content": message.text()}
    parts = [
        {"type": "image_url", "image_url": part.image_url.model_dump() | {"url": next(uris)}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}
