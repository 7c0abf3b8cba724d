"""Which recipes the installed packages bring: read from their entry points, without importing them.

A package, Trainyard itself included, registers a recipe in its pyproject.toml::

    [project.entry-points."trainyard.recipes"]
    my-recipe = "my_package.module:MyRecipe"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata

GROUP = "trainyard.recipes"
BUILT_IN = "trainyard"  # the distribution whose recipes are the built-in ones


@dataclass(frozen=True)
class InstalledRecipe:
    """A recipe, and who brings it.

    Attributes:
        package: name of the distribution, as pip knows it.
        target: MODULE:CLASS.
    """

    name: str
    package: str
    version: str
    target: str

    @property
    def built_in(self) -> bool:
        return self.package == BUILT_IN

    @property
    def source(self) -> str:
        """The package and its version, for messages."""
        return f"{self.package} {self.version}"


class RecipeLookupError(LookupError):
    """No package, or more than one, brings a recipe; the message is one line that says what to do.

    Attributes:
        unknown: no package does.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


@cache
def installed_recipes() -> tuple[InstalledRecipe, ...]:
    """Every recipe that a package here registers, by name; some may have the same one."""
    found = [
        InstalledRecipe(entry.name, entry.dist.name, entry.dist.version, entry.value)
        for entry in metadata.entry_points(group=GROUP)
        if entry.dist is not None
    ]
    return tuple(sorted(found, key=lambda recipe: (recipe.name, recipe.package)))


def built_in_recipes() -> list[str]:
    """The names of the recipes that are part of Trainyard."""
    return [recipe.name for recipe in installed_recipes() if recipe.built_in]


def installed_recipe(name: str) -> InstalledRecipe:
    """The recipe of that name. Raises RecipeLookupError.

    Packages can't take each other's names, nor those of the built-in recipes: which one a run got
    would depend on what else is installed.
    """
    found = [recipe for recipe in installed_recipes() if recipe.name == name]
    if not found:
        raise RecipeLookupError(_unknown(name), unknown=True)
    if found[1:]:
        raise RecipeLookupError(_ambiguous(name, found))
    return found[0]


def _unknown(name: str) -> str:
    known = dict.fromkeys(recipe.name for recipe in installed_recipes())
    if not any(recipe.built_in for recipe in installed_recipes()):
        return f"recipe: {name}: this installation of trainyard registers no recipes; reinstall it"
    return f"recipe: {name}: unknown; known recipes: {', '.join(known)}"


def _ambiguous(name: str, found: Sequence[InstalledRecipe]) -> str:
    sources = " and ".join(recipe.source for recipe in found)
    others = [recipe.package for recipe in found if not recipe.built_in]
    remove = others[0] if len(others) < len(found) else "one of them"
    return f"recipe: {name}: {sources} each bring a recipe of this name; uninstall {remove}"
