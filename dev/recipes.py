"""The keys of the built-in recipes' settings, for where the trainer isn't: `python -m dev.recipes`.

- trainyard_api/recipes.json, for the CLI and other readers of manifests;
- charts/operator/policies/recipes.json, for the admission policy.
"""

import json
from pathlib import Path

from trainyard_api.recipe_packages import built_in_recipes
from trainyard_api.recipes import Keys
from trainyard_trainer.describe import setting_keys
from trainyard_trainer.registry import find_recipe

REPO = Path(__file__).resolve().parents[1]
FILES = (
    REPO / "api" / "trainyard_api" / "recipes.json",
    REPO / "charts" / "operator" / "policies" / "recipes.json",
)


def recipe_keys() -> Keys:
    """The keys of every built-in recipe's settings, from the recipes themselves."""
    return {name: setting_keys(find_recipe(name).Config) for name in built_in_recipes()}


def keys_json(keys: Keys) -> str:
    """The files' content."""
    return json.dumps(keys, indent=1) + "\n"


def main() -> None:
    text = keys_json(recipe_keys())
    for file in FILES:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    main()
