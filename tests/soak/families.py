"""The recipe families, each with data made here and a model so small that a run takes a second."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard_trainer.recipes import RECIPES

Settings = dict[str, Any]

# Twelve steps, with dropout wherever the model has it.
COMMON: Settings = {
    "max_steps": 12,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "eval_steps": 4,
    "eval_batches": 2,
    "log_steps": 1,
}
SAVE_STEPS = 3


@dataclass(frozen=True)
class Family:
    """One recipe.

    Attributes:
        settings: its config beside COMMON; makes the data in the folder it is given.
        imports: modules that every run would import by itself, for the rank server.
    """

    recipe: str
    settings: Callable[[Path], Settings]
    imports: tuple[str, ...] = ()


def char_gpt(folder: Path) -> Settings:
    corpus = folder / "corpus.txt"
    corpus.write_text(inspect.getsource(argparse)[:20_000])
    return {
        "corpus": str(corpus),
        "block_size": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "dropout": 0.1,
        "sample_tokens": 20,
    }


FAMILIES = {
    family.recipe: family
    for family in (Family("char-gpt", char_gpt, ("trainyard_trainer.recipes.char_gpt",)),)
    if family.recipe in RECIPES
}
