"""`response_format` of a chat request: free text, any JSON object, or JSON of a schema."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainyard_serving.generate.engine import JsonDict
from trainyard_serving.generate.messages import JsonObject


class JsonSchema(BaseModel):
    """A JSON schema with a name. It is always followed exactly, also if `strict` is false."""

    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True)

    name: str = Field(min_length=1)
    description: str | None = None
    json_schema: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_of_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema must be given if type is "json_schema", and only then')
        return self

    @property
    def schema_of_answer(self) -> JsonDict | None:
        """The schema that the answer must follow; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return {"type": "object"} if self.type == "json_object" else None
