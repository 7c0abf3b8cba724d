"""Faults inside a rank, for test_watch.py: preloaded into rank_server.py, no effect without FAULT.

FAULT is `RANK:KIND`. SLOW seconds is more than the timeout of these tests.
"""

import os
import time
from typing import Any

from trainyard_trainer.checkpoint import checkpointer as checkpoint
from trainyard_trainer.checkpoint import publish as publishing
from trainyard_trainer.loop import Loop
from trainyard_trainer.recipes.char_gpt import CharGPT

SLOW = 2.0
STEP = 9  # where a rank goes wrong: past the first of everything


def wanted(kind: str) -> bool:
    return os.environ.get("FAULT") == f"{os.environ.get('RANK', '0')}:{kind}"


def stuck_in_the_data() -> None:
    """A disk that never answers."""
    while True:
        time.sleep(60)


_save, _next_batch, _train_step = Loop._save, Loop._next_batch, Loop._train_step
_evaluate, _publish = CharGPT.evaluate, publishing.publish


def save(loop: Loop) -> None:
    if not (wanted("skips a collective") and loop.step > STEP):
        _save(loop)


def next_batch(loop: Loop) -> Any:
    if wanted("waits for data") and loop.step == STEP:
        stuck_in_the_data()
    return _next_batch(loop)


def train_step(loop: Loop) -> Any:
    if wanted("is slow") and loop.step == loop.start:
        time.sleep(SLOW)  # as if it compiled
    return _train_step(loop)


def evaluate(recipe: CharGPT, *arguments: Any) -> Any:
    if wanted("is slow"):
        time.sleep(SLOW)
    return _evaluate(recipe, *arguments)


def publish(*arguments: Any) -> Any:
    if "is slow" in os.environ.get("FAULT", ""):  # rank 0 alone publishes
        time.sleep(SLOW)
    return _publish(*arguments)


for owner, name, function in (
    (Loop, "_save", save),
    (Loop, "_next_batch", next_batch),
    (Loop, "_train_step", train_step),
    (CharGPT, "evaluate", evaluate),
    (checkpoint, "publish", publish),
):
    setattr(owner, name, function)
