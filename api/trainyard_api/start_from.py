"""StartFrom: the checkpoint of another run that a run begins with (a branch)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from trainyard_api.base import NAME_PATTERN, Rule, SpecModel, matches


def _step(value: Any) -> Any:
    if value in ("newest", "best") or (type(value) is int and value >= 0):
        return value
    # A word may be one that a newer version knows.
    kind = "literal_error" if isinstance(value, str) else "value_error"
    raise PydanticCustomError(kind, "must be newest, best or the number of a step")


class StartFrom(SpecModel):
    """The checkpoint of another run that this run begins with. The other run is only read."""

    rules: ClassVar = (
        Rule(
            "has(self.run) != has(self.path)",
            "startFrom: set exactly one of run (the name of a run) and path (a directory)",
            lambda s: (s.run is None) != (s.path is None),
        ),
        Rule(
            "has(self.run) || !has(self.claimName)",
            "startFrom.claimName is the claim of startFrom.run: it does not go with path",
            lambda s: s.run is not None or s.claim_name is None,
        ),
    )

    run: Annotated[str, matches(NAME_PATTERN, "must be the name of a TrainingRun")] | None = Field(
        default=None,
        max_length=63,
        description="Name of the other run, in the same namespace. It may have been deleted,"
        " if its data was kept.",
    )
    claim_name: (
        Annotated[
            str,
            matches(
                "[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
                "must be the name of a PersistentVolumeClaim: lower-case letters, digits, dashes",
            ),
        ]
        | None
    ) = Field(
        default=None,
        max_length=253,
        description="Name of the PersistentVolumeClaim with the other run's data, if that run has"
        " a storage.claimName. Default: the claim that the operator created for it.",
    )
    path: Annotated[str, matches("/.*", "must be an absolute path")] | None = Field(
        default=None,
        max_length=1024,
        description="Directory of a run, or of one checkpoint, in the container (mounted by"
        " podTemplate) or on this machine.",
    )
    step: Annotated[
        Literal["newest", "best"] | int,
        BeforeValidator(_step),
        WithJsonSchema(
            {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "pattern": "^(newest|best)$",
                "minimum": 0,
            }
        ),
    ] = Field(
        default="newest",
        description="Which of its verified checkpoints: newest, best (the lowest evaluation loss)"
        " or the number of a step.",
    )
    what: Literal["everything", "weights"] = Field(
        default="everything",
        description="What to take: everything (weights, optimizer, random states, step and position"
        " in the data, as if the other run resumed), or weights (a new run from step 0 with them).",
    )
