"""The messages of a conversation, as chat clients send them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator


def valid_text(text: str, field: str) -> str:
    """`text`, if it can be encoded. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} is not valid Unicode (a lone surrogate)") from None
    return text


class TextPart(BaseModel):
    """A part of a message's content."""

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
    """A message of the conversation.

    The message of a response is accepted unchanged: its other fields are empty.
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
