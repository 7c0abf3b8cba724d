"""Recipes: one short file per model family, loaded only when a run asks for it."""

import importlib

from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.base import Recipe

# name -> module below this package that defines RECIPE, a subclass of Recipe
RECIPES = {
    "causal-lm-finetune": "causal_lm_finetune",
    "char-gpt": "char_gpt",
    "gpt": "gpt",
    "image-classification": "image_classification",
    "text-classification": "text_classification",
}


def check_recipe(name: str) -> None:
    """Raise ConfigError, naming the known recipes, if no recipe has that name."""
    if name not in RECIPES:
        raise ConfigError(f"recipe: {name}: unknown; known recipes: {', '.join(sorted(RECIPES))}")


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of that name."""
    check_recipe(name)
    module = importlib.import_module(f"trainyard_trainer.recipes.{RECIPES[name]}")
    recipe: type[Recipe] = module.RECIPE
    return recipe
