"""`python -m trainyard_trainer.check`: what is wrong with settings, before anything is started.

Reads a JSON list of {recipe, config, processes} from standard input, and writes what is wrong with
each: a list of [where in the config, line].
"""

import json
import sys
from typing import Any

from pydantic import ValidationError

from trainyard_api.recipes import Location
from trainyard_trainer.config import check_batch_size, problems
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.registry import find_recipe


def check(recipe: str, config: dict[str, Any], processes: int) -> list[tuple[Location, str]]:
    """What is wrong with the settings of a run on that many processes."""
    try:
        cls = find_recipe(recipe).Config
    except ConfigError as error:
        return [((), str(error))]
    try:
        check_batch_size(cls.model_validate(config), processes)
    except ValidationError as error:
        return problems(cls, error)
    except ConfigError as error:
        return [(("batch_size",), str(error))]
    return []


if __name__ == "__main__":
    json.dump([check(**run) for run in json.load(sys.stdin)], sys.stdout)
