"""Computes a model's golden request again: does it answer here as it did where it was trained?"""

from collections.abc import Callable
from typing import TypeVar

from trainyard_api.base import Model
from trainyard_api.golden import GOLDEN, GoldenText, InvalidGoldenError, read_golden
from trainyard_serving.errors import BadModelError
from trainyard_serving.verified import VerifiedModel

G = TypeVar("G", bound=Model)


def golden_of(source: VerifiedModel, kind: type[G]) -> G | None:
    """The golden request that came with a model; None where there is none.

    Raises BadModelError.
    """
    try:
        return read_golden(source.path, kind)
    except InvalidGoldenError as error:
        raise BadModelError(str(error)) from None


def check_text(
    source: VerifiedModel,
    golden: GoldenText,
    encode: Callable[[str], list[int]],
    logits: Callable[[list[int], list[int]], list[float]],
    exact: bool,
) -> None:
    """Raise BadModelError unless a language model agrees with its golden request.

    Args:
        encode: text to token ids.
        logits: the logits of some tokens (the second list) after unread ones (the first), the
            earlier calls' tokens standing before them, as they do when text is generated.
        exact: whether the model computes in 32 bits.
    """
    where = source.path / GOLDEN
    if encode(golden.prompt) != golden.prompt_ids:
        raise BadModelError(f"{where}: the tokenizer makes other tokens of the prompt")
    unread = golden.prompt_ids
    positions = zip(golden.next_ids, golden.top_ids, golden.top_logits, strict=True)
    for number, (token, ids, expected) in enumerate(positions, start=1):
        # Devices and libraries round differently; a wrong weight changes logits by whole units.
        scale = max(abs(value) for value in expected)
        tolerance = 0.01 + 0.01 * scale if exact else 0.1 + 0.05 * scale
        pairs = zip(logits(unread, ids), expected, strict=True)
        difference = max(abs(got - wanted) for got, wanted in pairs)
        if not difference <= tolerance:  # NaN is no agreement
            raise BadModelError(
                f"{where}: the model computes other logits than the trainer did: token {number}"
                f" after the prompt is off by {difference:.3g} (at most {tolerance:.3g})"
            )
        unread = [token]
