"""Can texts of this model be written together? Asks its class, then tries."""

import inspect
from typing import Any

from torch import Tensor, cat
from transformers.cache_utils import DynamicLayer

from trainyard_serving.generate.padded_cache import PaddedCache
from trainyard_serving.generate.token_model import TokenModel

# Two prompts, and a token that goes on from both; every vocabulary has these.
LONG, SHORT, NEXT = [0, 1, 2, 1, 0, 2, 1], [2, 1, 0], [1]


def obstacle(model: TokenModel) -> str | None:
    """Why its texts have to be written one at a time; None when they need not be."""
    kinds = {type(layer).__name__ for layer in model.new_cache().layers}
    if unknown := kinds - {DynamicLayer.__name__}:
        return f"its cache has layers of another kind ({', '.join(sorted(unknown))})"
    takes = inspect.signature(model.module.forward).parameters.keys()
    if missing := {"attention_mask", "position_ids"} - takes:
        return f"it takes no {' and '.join(sorted(missing))}"
    rope: Any = getattr(model.module.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return "its positions depend on the longest text beside them (longrope)"
    if model.context_length <= len(LONG):
        return f"its context of {model.context_length} tokens is too short to try"
    try:
        apart, together = _alone(model), _side_by_side(model)
    except Exception as error:
        return f"a trial failed ({type(error).__name__}: {error})"
    off = float((apart - together).abs().max())
    # Rounding moves float32's logits by a millionth of their size, 16 bits by a hundredth; what
    # forgets a mask or a position moves them by their size.
    bound = (1e-3 if model.exact else 0.1) * float(apart.abs().max())
    return None if off <= bound else f"in a trial its logits were off by {off:.3g}"


def _alone(model: TokenModel) -> Tensor:
    """Logits [2, vocabulary] of the token after each prompt and its next token."""
    rows = []
    for prompt in (LONG, SHORT):
        cache = model.new_cache()
        model.logits([prompt], cache)
        rows.append(model.logits([NEXT], cache))
    return cat(rows)


def _side_by_side(model: TokenModel) -> Tensor:
    """The same, from two rows, the first of them read in two pieces."""
    batch = PaddedCache()
    for pieces in ((LONG[:4], LONG[4:]), (SHORT,)):
        cache = model.new_cache()
        for piece in pieces:
            model.logits([piece], cache)
        batch.join(cache)
    return model.logits([NEXT, NEXT], batch.cache, batch.padding)
