"""Settings of the embedding server."""

from typing import Literal, Self

from pydantic import Field, model_validator

from trainyard_serving.settings import ComputeSettings, ModelSource


class EmbedSettings(ModelSource, ComputeSettings):
    """Settings of the embedding server."""

    max_queue: int = Field(
        default=4096, ge=1, description="Texts that may wait; further ones get a 429."
    )
    max_body_bytes: int = Field(
        default=2 * 2**20,
        ge=1,
        description="Largest size of a request's body, in bytes; larger ones get a 413.",
    )
    engine: Literal["torch"] = Field(
        default="torch", description="torch computes in this process; there is no other."
    )
    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        description="Model name that clients use. Default: the run's name.",
    )
    # Clients send batches of their own: LangChain's have 1,000 texts, OpenAI's API takes 2,048.
    max_texts: int = Field(
        default_factory=lambda data: min(2048, data["max_queue"]),
        ge=1,
        description="Largest number of texts in a request. Default: 2048, or --max-queue if less.",
        json_schema_extra={"default": 2048},
    )
    max_batch_size: int = Field(default=32, ge=1, description="Texts computed at a time.")
    max_batch_tokens: int = Field(
        default=16384,
        ge=1,
        description="Tokens computed at a time, which bounds the memory, and so the largest number"
        " of tokens of a text.",
    )

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Self:
        if self.max_texts > self.max_queue:
            raise ValueError("--max-texts must not be above --max-queue")
        return self
