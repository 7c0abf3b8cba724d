"""The messages of a conversation and the tools in it, as chat clients and agents send them."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

MAX_NESTING = 100  # of JSON in JSON; pydantic itself writes at most 255 levels


def valid_text(text: str, field: str) -> str:
    """`text`, if it can be encoded. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} is not valid Unicode (a lone surrogate)") from None
    return text


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(MAX_NESTING):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for each in inner for one in each if isinstance(one, dict | list)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")


# What is given to templates and libraries, some of which recurse.
JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str
    # A hint of agents to servers that keep prompts in a cache; it never changes an answer.
    cache_control: dict[str, Any] | None = None


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


def _arguments(text: str) -> str:
    try:
        parsed = json.loads(text or "{}")
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("arguments of a tool call must be a JSON object, as a string")
    return text or "{}"


class FunctionCall(BaseModel):
    """The function that the assistant called, and its arguments as JSON."""

    model_config = ConfigDict(strict=True)

    name: str = Field(min_length=1)
    arguments: Annotated[str, AfterValidator(_arguments)]


class ToolCall(BaseModel):
    """A call of a tool in an earlier message of the assistant."""

    model_config = ConfigDict(strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the arguments are an object, not a string."""
        function = {
            "name": self.function.name,
            "arguments": json.loads(self.function.arguments),
        }
        call = {"type": self.type, "function": function}
        return call if self.id is None else {"id": self.id} | call


class AnyMessage(BaseModel):
    """A message of a conversation, whatever its content.

    The message of a response is accepted unchanged: its other fields are empty.
    """

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        for name in data.keys() - cls.model_fields.keys():
            if data[name] not in (None, [], {}, ""):
                raise ValueError(f"{name} is not supported: leave it out")
        changed = dict(data)
        if data.get("role") == "developer":  # OpenAI's newer word for it
            changed["role"] = "system"
        if data.get("role") == "assistant" and data.get("content") is None:
            changed["content"] = ""  # beside tool_calls there is often no text
        if data.get("tool_calls") == []:
            changed["tool_calls"] = None
        return changed


class Message(AnyMessage):
    """A message of text, or of tools."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to messages of the assistant")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("tool_call_id belongs to messages with role tool")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it, without absent fields."""
        message = self.model_dump(exclude_none=True)
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message


class Function(BaseModel):
    """A function that the assistant may call; `parameters` is a JSON schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the assistant may call."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: Function
