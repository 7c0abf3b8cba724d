"""What a completion is asked to be, and the pieces it arrives in. Plain values: no torch here."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens and when to end."""

    max_tokens: int = 16
    temperature: float = 1.0  # 0 takes the likeliest token
    top_p: float = 1.0  # the smallest set of tokens with this much probability
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """The next piece of one prompt's completion; the last one carries the finish reason."""

    index: int  # which of the request's prompts
    text: str
    num_tokens: int  # generated for this piece
    finish_reason: FinishReason | None = None


class PromptError(Exception):
    """The model cannot take this prompt; the message says what to change."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
