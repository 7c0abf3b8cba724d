"""Resource: what our objects have in common, as Kubernetes stores them."""

import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from trainyard_api.base import NAME_PATTERN, Model, Rule


class ObjectMeta(BaseModel):
    """The parts of Kubernetes object metadata we read; the rest is kept as it is."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Resource(Model):
    """An object of ours; its spec and status are the subclass's."""

    api_version: Literal["trainyard.dev/v1alpha1"]
    kind: str
    metadata: ObjectMeta

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace or "default"


def name_rules(longest: int, why: str) -> tuple[Rule, Rule]:
    """The rules of metadata.name; `why` explains the limit of `longest` characters."""
    return (
        Rule(
            f"self.metadata.name.size() <= {longest}",
            f"metadata.name must have at most {longest} characters ({why})",
            lambda s: len(s.metadata.name) <= longest,
        ),
        Rule(
            f"self.metadata.name.matches('^{NAME_PATTERN}$')",
            "metadata.name must begin with a lower-case letter and hold only lower-case letters,"
            " digits and dashes (Services are named after it)",
            lambda s: re.fullmatch(NAME_PATTERN, s.metadata.name) is not None,
        ),
    )
