"""All about one run, as its page shows it: models, and what a TrainingRun itself says.

What comes from a run may be anything: texts and lists are cut to what a page can show.
"""

from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, Field

from trainyard_api.base import parse_known
from trainyard_api.status import TrainingRunStatus
from trainyard_dashboard.catalog import RunSummary
from trainyard_dashboard.history import Evaluation, TextSample

MAX_TEXT = 4000  # characters of one text in a status or an event
MAX_SPEC_TEXT = 20_000  # characters of one text in a spec, which may hold a script
MAX_SPEC = 64 << 10  # characters of the whole spec
MAX_ITEMS = 100  # of a list
MAX_DEPTH = 24
CUT = " … (cut)"
HIDDEN = "(not shown)"
MANIFEST = "trainyard.dev/manifest"  # annotation of a local run: the user's file

T = TypeVar("T")


class Part(BaseModel, Generic[T]):
    """What a data source knows of one kind."""

    items: list[T] = Field(default_factory=list)
    note: str = Field(default="", description="Why there are none, or not all; one line.")


class RunEvent(BaseModel):
    """Something that happened."""

    time: str = ""
    type: str = ""
    reason: str = ""
    message: str = ""
    count: int = 1


class Stored(BaseModel):
    """A checkpoint or an exported model, by its manifest."""

    step: int
    path: str = Field(description="Relative to the run's directory.")
    created: str = ""
    attempt: int | None = None
    size_bytes: int | None = None
    digest: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    problem: str = Field(default="", description="Why it can't be used; one line.")


class Score(BaseModel):
    """One metric of a task that `trainyard evaluate` has scored a model on."""

    task: str
    metric: str
    value: float
    error: float | None = Field(default=None, description="Its standard error.")
    samples: int
    complete: bool = Field(description="False if samples of the task were left out (--limit).")
    time: str
    step: int = Field(description="Of the model.")
    digest: str = Field(description="Of the model: the scores say nothing about other files.")


class LogTail(BaseModel):
    """The newest lines of the output of one node in one attempt."""

    name: str = Field(description="ATTEMPT-NODE")
    text: str = ""
    note: str = Field(default="", description="Why there is nothing, or not everything.")


class RunDetails(BaseModel):
    """Everything that a run's data source knows of it."""

    run: RunSummary
    spec: str = Field(
        default="",
        description="As YAML. Values of environment variables are left out: they may be secrets.",
    )
    manifest: str = Field(default="", description="The file that a local run was started from.")
    serve: str = Field(default="", description="A command that serves its newest model.")
    status: dict[str, Any] = Field(
        default_factory=dict, description="The TrainingRun's status, as far as it is known here."
    )
    warnings: list[str] = Field(default_factory=list)
    events: Part[RunEvent] = Field(default_factory=Part[RunEvent])
    logs: Part[str] = Field(default_factory=Part[str], description="Their names: ATTEMPT-NODE.")
    checkpoints: Part[Stored] = Field(default_factory=Part[Stored])
    models: Part[Stored] = Field(default_factory=Part[Stored])
    evaluations: Part[Evaluation] = Field(default_factory=Part[Evaluation])
    scores: Part[Score] = Field(default_factory=Part[Score])
    samples: Part[TextSample] = Field(default_factory=Part[TextSample])
    traces: Part[str] = Field(
        default_factory=Part[str], description="Paths in the run's directory."
    )

    def parts(self) -> list[Part[Any]]:
        """Those that its data source fills."""
        return [value for value in vars(self).values() if isinstance(value, Part)]

    @classmethod
    def of(cls, run: RunSummary, wire: dict[str, Any]) -> "RunDetails":
        """What the TrainingRun itself says; its data source adds the rest.

        Args:
            run: its summary.
            wire: the object, as JSON.
        """
        details = cls(run=run, spec=_to_yaml(wire.get("spec")))
        annotations = (wire.get("metadata") or {}).get("annotations") or {}
        details.manifest = str(annotations.get(MANIFEST) or "")[:MAX_TEXT]
        status = bounded(wire.get("status") or {}, MAX_TEXT)
        known = parse_known(TrainingRunStatus, status)
        if known is None:
            details.warnings.append("its status can't be read by this version of the dashboard")
        else:
            details.status = known.to_wire()
        return details


def add_from_status(details: RunDetails) -> None:
    """Where no manifest was found: the checkpoint and the models that the status names."""
    checkpoint = details.status.get("lastCheckpoint")
    if checkpoint and not details.checkpoints.items:
        details.checkpoints.items = [_of_status(checkpoint, created=checkpoint.get("time") or "")]
    named = [details.status.get(field) for field in ("model", "bestModel")]
    if not details.models.items:
        by_digest = {model["digest"]: _of_status(model) for model in named if model}
        details.models.items = list(by_digest.values())


def _of_status(stored: dict[str, Any], created: str = "") -> Stored:
    """A CheckpointRef or a ModelRef."""
    loss = stored.get("evalLoss")
    return Stored(
        step=stored["step"],
        path=stored.get("path", ""),
        created=created,
        digest=stored["digest"],
        metrics={} if loss is None else {"eval_loss": loss},
    )


def only_metrics(run: RunSummary, source: str) -> RunDetails:
    """The details of a run of which `source` knows only metrics."""
    details = RunDetails(run=run)
    for part in details.parts():
        part.note = f"Unknown: {source} has only metrics."
    return details


def bounded(value: Any, characters: int, depth: int = MAX_DEPTH) -> Any:
    """A copy of JSON with texts, lists and nesting cut."""
    if isinstance(value, str):
        return value if len(value) <= characters else value[:characters] + CUT
    if depth == 0 and isinstance(value, dict | list):
        return CUT
    if isinstance(value, dict):
        kept = list(value.items())[:MAX_ITEMS]
        return {str(key)[:characters]: bounded(each, characters, depth - 1) for key, each in kept}
    if isinstance(value, list):
        return [bounded(each, characters, depth - 1) for each in value[:MAX_ITEMS]]
    return value


def _to_yaml(spec: Any) -> str:
    """The spec, without values of environment variables."""
    shown = _without_values(bounded(spec or {}, MAX_SPEC_TEXT))
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100)
    return text if len(text) <= MAX_SPEC else text[:MAX_SPEC] + CUT


def _without_values(value: Any) -> Any:
    """A copy in which no entry of a list `env` has its value."""
    if isinstance(value, list):
        return [_without_values(each) for each in value]
    if not isinstance(value, dict):
        return value
    shown = {key: _without_values(each) for key, each in value.items()}
    if isinstance(shown.get("env"), list):
        shown["env"] = [_hidden(each) for each in shown["env"]]
    return shown


def _hidden(variable: Any) -> Any:
    has_value = isinstance(variable, dict) and "value" in variable
    return {**variable, "value": HIDDEN} if has_value else variable
