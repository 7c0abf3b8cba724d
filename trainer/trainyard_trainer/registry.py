"""Finds recipes: the classes that this and other packages register as entry points.

Only the module of the recipe that is asked for is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any, get_args

from trainyard_api.recipe_packages import InstalledRecipe, RecipeLookupError, installed_recipe
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainyard_trainer.recipes import Recipe


def check_recipe(name: str) -> InstalledRecipe:
    """Where the recipe comes from; without torch. Raises ConfigError unless one package has it."""
    try:
        return installed_recipe(name)
    except RecipeLookupError as error:
        raise ConfigError(str(error)) from None


def find_recipe(name: str) -> "type[Recipe]":
    """The recipe of that name. Raises ConfigError if it is missing, broken or incomplete."""
    registered = check_recipe(name)
    where = f"recipe: {name}: package {registered.source}, {registered.target}"
    module, _, attribute = registered.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        # Any other error in the module is the author's, who needs the traceback.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{where} can't be imported; install what it needs, or another version of it"
            f" ({reason[:300]})"
        ) from error
    found = getattr(found, attribute, None)
    if problem := _problem(found):
        raise ConfigError(f"{where} {problem}")
    recipe: type[Recipe] = found
    return recipe


def _problem(found: Any) -> str | None:
    """Why this can't be used as a recipe; None if it can."""
    from trainyard_trainer.recipes import Recipe, ServingApp, TrainConfig

    if not isinstance(found, type) or not issubclass(found, Recipe):
        return "is not a subclass of trainyard_trainer.recipes.Recipe"
    config = getattr(found, "Config", None)
    if not isinstance(config, type) or not issubclass(config, TrainConfig):
        return "has no Config that is a subclass of trainyard_trainer.recipes.TrainConfig"
    if missing := sorted(found.__abstractmethods__):
        return f"lacks {', '.join(missing)}"
    if found.serving not in (None, *(apps := get_args(ServingApp))):
        return f"has serving = {found.serving!r}; use {' or '.join(map(repr, apps))} or None"
    return None
