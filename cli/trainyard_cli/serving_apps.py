"""Which of the serving part's apps answers from a run's model, and how to ask it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class App:
    """An app of `python -m trainyard_serving`.

    Attributes:
        port: its usual port.
        engines: the first is its default.
        page: path of the page to try it by hand.
        route: path of a prediction.
        field: what a prediction's text is called.
        example: the text to try.
        more: further fields of the example.
    """

    name: str
    port: int
    engines: tuple[str, ...]
    page: str
    route: str
    field: str
    example: str
    more: dict[str, Any]


GENERATE = App(
    "generate",
    8000,
    ("torch", "sglang"),
    "/",
    "/v1/completions",
    "prompt",
    "def ",
    {"max_tokens": 64},
)
CLASSIFY = App(
    "classify",
    7860,
    ("torch", "onnx"),
    "/try",
    "/predict",
    "text",
    "Shares rose after the company reported record profits.",
    {},
)
BY_RECIPE = {
    "causal-lm-finetune": GENERATE,
    "char-gpt": GENERATE,
    "gpt": GENERATE,
    "text-classification": CLASSIFY,
}
