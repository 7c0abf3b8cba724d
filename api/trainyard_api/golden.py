"""Golden requests: a model's inputs with the trainer's own outputs, written beside its weights.

Serving recomputes them before it lets a model answer. This catches a wrong tokenizer, wrongly
mapped weights, or a library that computes something else before a user sees it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from trainyard_api.base import Model, Record, validation_message

GOLDEN = "golden.json"
EVALUATION = "evaluation.jsonl"
MAX_EVALUATION_TEXTS = 2000


class GoldenText(Record):
    """A language model's continuation of a prompt.

    Tokens are chosen greedily; for each position the most likely few are listed with their logits.
    """

    task: Literal["text-generation"] = "text-generation"
    prompt: str
    prompt_ids: list[int] = Field(min_length=1, description="The prompt's tokens.")
    next_ids: list[int] = Field(min_length=1, description="The model's continuation.")
    top_ids: list[list[int]] = Field(description="Most likely tokens, for each of next_ids.")
    top_logits: list[list[float]] = Field(description="Their logits.")

    @model_validator(mode="after")
    def _one_list_a_token(self) -> Self:
        shapes = [[len(each) for each in lists] for lists in (self.top_ids, self.top_logits)]
        if shapes[0] != shapes[1] or len(shapes[0]) != len(self.next_ids) or 0 in shapes[0]:
            raise ValueError("topIds and topLogits must hold a list for each of nextIds")
        return self


class GoldenClasses(Record):
    """A text classifier's output for some texts."""

    task: Literal["text-classification"] = "text-classification"
    labels: list[str] = Field(min_length=1)
    texts: list[str] = Field(min_length=1)
    probabilities: list[list[float]] = Field(description="Of each class, for each of texts.")

    @model_validator(mode="after")
    def _one_list_a_text(self) -> Self:
        if [len(each) for each in self.probabilities] != [len(self.labels)] * len(self.texts):
            raise ValueError("probabilities must hold one of each label for each of texts")
        return self


class EvaluationText(Record):
    """A labelled text that a classifier was not trained on: a line of evaluation.jsonl."""

    text: str
    label: int = Field(ge=0)


class InvalidGoldenError(Exception):
    """The file is not a valid golden request; the message is one line that says why."""


G = TypeVar("G", bound=Model)


def write_golden(directory: Path, golden: Model) -> None:
    """Write `golden` into a model's directory."""
    (directory / GOLDEN).write_text(golden.model_dump_json(by_alias=True) + "\n", encoding="utf-8")


def read_golden(directory: Path, kind: type[G]) -> G | None:
    """The golden request of a model's directory, or None if it has none.

    Raises InvalidGoldenError.
    """
    path = directory / GOLDEN
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InvalidGoldenError(f"{path}: {validation_message(error)}") from None


def write_evaluation(directory: Path, texts: Iterable[EvaluationText]) -> None:
    """Write labelled texts into a model's directory."""
    lines = [text.model_dump_json() + "\n" for text in texts]
    (directory / EVALUATION).write_text("".join(lines), encoding="utf-8")


def read_evaluation(directory: Path) -> list[EvaluationText]:
    """The labelled texts of a model's directory; empty if it has none.

    Raises InvalidGoldenError.
    """
    path = directory / EVALUATION
    try:
        lines = path.read_bytes().splitlines()
        return [EvaluationText.model_validate_json(line) for line in lines]
    except FileNotFoundError:
        return []
    except ValidationError as error:
        raise InvalidGoldenError(f"{path}: {validation_message(error)}") from None
