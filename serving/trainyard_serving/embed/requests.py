"""Validated requests: of OpenAI's API, and of Text Embeddings Inference (TEI).

A field that is unknown here is refused by name, because ignoring it could give other embeddings.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainyard_serving.generate.openai_api import Prompts, Tokens, texts_or_tokens

Texts = list[str] | list[Tokens]


class _Request(BaseModel):
    """The fields that both routes have; null is the default of each.

    Attributes:
        harmless: further fields, with the values that have no effect besides null; None: any.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    harmless: ClassVar[Mapping[str, tuple[object, ...] | None]] = {}

    dimensions: int | None = Field(default=None, ge=1)
    truncate: bool | None = Field(
        default=None, description="Cut texts that are too long, instead of refusing them."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if not cls._has_no_effect(name, value)}

    @classmethod
    def _has_no_effect(cls, name: str, value: object) -> bool:
        if name in cls.model_fields:
            return False
        values = cls.harmless.get(name, ())
        return value is None or values is None or value in values


class EmbeddingsRequest(_Request):
    """Body of POST /v1/embeddings."""

    harmless = {"user": None, "add_special_tokens": (True,), "priority": (0,)}

    model: str | None = None
    input: Annotated[
        Texts,
        BeforeValidator(partial(texts_or_tokens, field="input"), json_schema_input_type=Prompts),
    ]
    encoding_format: Literal["float", "base64"] | None = None


class EmbedRequest(_Request):
    """Body of POST /embed."""

    harmless = {"truncation_direction": ("right", "Right")}

    inputs: Annotated[
        Texts,
        BeforeValidator(partial(texts_or_tokens, field="inputs"), json_schema_input_type=Prompts),
    ]
    normalize: bool | None = Field(default=None, description="Default: true.")
