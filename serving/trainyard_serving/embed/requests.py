"""Validated requests: of OpenAI's API, and of Text Embeddings Inference (TEI).

A field that is unknown here is refused by name, because ignoring it could give other embeddings.
"""

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from trainyard_serving.generate.openai_api import Prompts, Tokens, texts_or_tokens
from trainyard_serving.generate.openai_request import HarmlessValues, StrictRequest

Texts = list[str] | list[Tokens]


class _Request(StrictRequest):
    """The fields that both routes have."""

    dimensions: int | None = Field(default=None, ge=1)
    truncate: bool | None = Field(
        default=None, description="Cut texts that are too long, instead of refusing them."
    )


class EmbeddingsRequest(_Request):
    """Body of POST /v1/embeddings."""

    ignored: ClassVar[frozenset[str]] = frozenset({"user"})
    harmless: ClassVar[HarmlessValues] = {"add_special_tokens": (True,), "priority": (0,)}

    model: str | None = None
    input: Annotated[
        Texts,
        BeforeValidator(partial(texts_or_tokens, field="input"), json_schema_input_type=Prompts),
    ]
    encoding_format: Literal["float", "base64"] | None = None


class EmbedRequest(_Request):
    """Body of POST /embed."""

    harmless: ClassVar[HarmlessValues] = {"truncation_direction": ("right", "Right")}

    inputs: Annotated[
        Texts,
        BeforeValidator(partial(texts_or_tokens, field="inputs"), json_schema_input_type=Prompts),
    ]
    normalize: bool | None = Field(default=None, description="Default: true.")
