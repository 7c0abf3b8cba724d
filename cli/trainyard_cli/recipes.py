"""`trainyard recipes`: the recipes that packages here bring, and their settings."""

import subprocess
import sys

from trainyard_api.recipe_packages import RecipeLookupError, installed_recipe, installed_recipes
from trainyard_local.preflight import require_extra
from trainyard_local.store import UserError


def list_recipes() -> str:
    """A line for every recipe: its name, its package and that one's version."""
    rows = [("NAME", "PACKAGE", "VERSION")]
    rows += [(each.name, each.package, each.version) for each in installed_recipes()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows)


def show_recipe(name: str, form: str) -> str:
    """A recipe's settings as `markdown`, `schema` or `values`. Raises UserError.

    It takes a process, and seconds: the recipes import torch.
    """
    try:
        installed_recipe(name)
    except RecipeLookupError as error:
        raise UserError(str(error)) from None
    require_extra("trainer", "trainyard recipes show")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainyard_trainer.describe", name, form],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(done.stderr.strip().rpartition("\n")[2])
    return done.stdout.rstrip("\n")
