"""The keys of the built-in recipes' settings, for where the trainer isn't installed.

recipes.json is generated from the recipes' own models by `make crd`. charts/operator has a copy for
its admission policy, in which the API server computes the same lines (templates/_recipe-keys.tpl).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from trainyard_api.run import TrainingRun
from trainyard_api.spec import CONTAINER

# Recipe -> group of settings ("": the config itself) -> the keys that it may have.
Keys = Mapping[str, Mapping[str, Sequence[str]]]
Location = tuple[str | int, ...]

# How alike two keys must be, in percent, for one to be proposed for the other.
ALIKE = 50
MAX_PAIRS = 40  # of a key that are looked at


@cache
def recipe_keys() -> Keys:
    """The keys of every built-in recipe."""
    keys: Keys = json.loads(Path(__file__).with_name("recipes.json").read_text())
    return keys


def is_known(run: TrainingRun) -> bool:
    """Whether the run trains a built-in recipe in the operator's own trainer image.

    Another image may have another version of it.
    """
    template = run.spec.pod_template.spec if run.spec.pod_template else {}
    images = [
        container.get("image")
        for container in template.get("containers") or []
        if container.get("name") == CONTAINER
    ]
    return run.spec.recipe in recipe_keys() and not any([run.spec.image, *images])


def unknown_keys(run: TrainingRun) -> Iterator[tuple[Location, str]]:
    """Every key of the config that its recipe doesn't know: where it is, and a line about it."""
    if not is_known(run):
        return
    config = run.spec.config or {}
    for group, known in recipe_keys()[run.spec.recipe or ""].items():
        settings = config.get(group) if group else config
        if isinstance(settings, dict):
            for key in settings.keys() - set(known):
                path = (group, key) if group else (key,)
                yield ("spec", "config", *path), unknown_key(path, known)


def unknown_key(path: Location, known: Sequence[str]) -> str:
    """One line about an unknown key; `known` are those that may stand there."""
    where, key = ".".join(["config", *map(str, path)]), str(path[-1])
    scores = [_likeness(key, name) for name in known]
    if max(scores) < ALIKE:
        return f"{where}: unknown key (known: {', '.join(known)})"
    return f"{where}: unknown key; did you mean {known[scores.index(max(scores))]}?"


def _likeness(key: str, name: str) -> int:
    """How alike they are, in percent: the share of pairs of letters that they have in common.

    Dice's coefficient, as the API server's CEL can compute it.
    """
    pairs = [key[at : at + 2] for at in range(min(len(key) - 1, MAX_PAIRS))]
    return 200 * sum(pair in name for pair in pairs) // (len(key) + len(name) - 1)
