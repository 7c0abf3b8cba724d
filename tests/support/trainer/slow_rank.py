"""A rank that has more to do than the others; preloaded into rank_server.py.

SLOW_RANK is `RANK:SECONDS`; every rank sees it, only that one's forward pass takes longer.
"""

import os
import time
from typing import Any

from trainyard_trainer.recipes.char_gpt import CharGPT

_loss = CharGPT.loss


def loss(recipe: CharGPT, model: Any, batch: Any) -> Any:
    rank, _, seconds = os.environ.get("SLOW_RANK", "").partition(":")
    if rank == os.environ.get("RANK", "0"):
        time.sleep(float(seconds))
    return _loss(recipe, model, batch)


CharGPT.loss = loss  # type: ignore[assignment, method-assign]
