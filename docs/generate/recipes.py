"""docs/reference/recipes.md: every recipe and all its settings."""

from pathlib import Path

import yaml

from trainyard_api.recipe_packages import built_in_recipes
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.describe import own_settings, settings_table, what_it_trains
from trainyard_trainer.registry import find_recipe

HEAD = """\
# Recipes

A recipe is a model family with its data, loss, evaluation and exported form. `spec.recipe` names
it and `spec.config` holds its settings: unknown ones are errors, those left out have the default
below. Every finished run leaves a model in Hugging Face form in `models/`. This page is generated
from the code by `make reference`.
[A package of yours](../guides/own-recipe.md) can bring more: `trainyard recipes show NAME` prints
their settings.

| recipe | what it trains | examples |
|---|---|---|
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = """\

## Settings of every recipe

Names are those of the Hugging Face Trainer where it has one. A recipe with another default says so
in its own table.

*On resume* says whether a setting may change while a run has checkpoints: what is `fixed` may
change in a [branch](../start/concepts.md#branching-start-from-another-run), the `architecture` may
not.
Where a setting names data, the data itself is compared, not the name.
"""


def reference() -> str:
    """The page, Markdown."""
    recipes = {name: find_recipe(name) for name in built_in_recipes()}
    examples: dict[str, list[str]] = {name: [] for name in recipes}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        spec = yaml.safe_load(path.read_text()).get("spec", {})
        if "recipe" in spec:
            examples[spec["recipe"]].append(path.stem)
    parts = [HEAD]
    for name, recipe in recipes.items():
        files = ", ".join(f"[{file}](../../examples/{file}.yaml)" for file in examples[name])
        parts.append(f"| [{name}](#{name}) | {what_it_trains(recipe)} | {files} |\n")
    parts.append(SHARED)
    parts.append(settings_table(TrainConfig, TrainConfig.model_fields))
    for name, recipe in recipes.items():
        parts.append(f"\n## {name}\n")
        parts.append(settings_table(recipe.Config, own_settings(recipe.Config)))
    return "".join(parts)
