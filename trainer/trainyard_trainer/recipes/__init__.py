"""What a recipe is made of: the public surface for recipes, built-in ones and those of others.

A recipe uses this module, and these beside it:

- `trainyard_trainer.recipes.classification`, `gpt_base`, `hugging_face` and `lora`: bases of the
  built-in recipes, and helpers for models in Hugging Face form;
- `trainyard_trainer.data`: corpora, tables, images and texts as samples;
- `trainyard_trainer.models`: models without anything about training.

The built-in recipes are modules of this package, which registers them as any other package does: as
entry points (`trainyard.recipes` in pyproject.toml). They import nothing else of the trainer.
"""

from trainyard_trainer.config import BRANCH, Architecture, Changeable, TrainConfig
from trainyard_trainer.data.sampling import Batch, Ids, Noise, Samples, Weights
from trainyard_trainer.errors import ConfigError, UserError
from trainyard_trainer.recipes.base import COMPARED_TOKENS, LOSS, Recipe, ServingApp
from trainyard_trainer.recipes.golden import (
    choose_rows,
    choose_texts,
    prompt_tokens,
    write_golden_classes,
    write_golden_text,
)

__all__ = [
    "BRANCH",
    "COMPARED_TOKENS",
    "LOSS",
    "Architecture",
    "Batch",
    "Changeable",
    "ConfigError",
    "Ids",
    "Noise",
    "Recipe",
    "Samples",
    "ServingApp",
    "TrainConfig",
    "UserError",
    "Weights",
    "choose_rows",
    "choose_texts",
    "prompt_tokens",
    "write_golden_classes",
    "write_golden_text",
]
