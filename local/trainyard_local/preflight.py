"""Problems that can be detected before any process is started, in one line each."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainyard_api.recipe_packages import installed_recipes
from trainyard_api.recipes import Location, is_known, recipe_keys
from trainyard_api.run import TrainingRun
from trainyard_local import gpus
from trainyard_local.machine import installed_version
from trainyard_local.store import UserError


def search_path() -> str:
    """PATH of workers: the directory of this Python comes first, so that `python` is this one."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def problem(run: TrainingRun, working_directory: str) -> str | None:
    """Why workers of `run` cannot start on this machine; None if they can."""
    if not os.path.isdir(working_directory):
        return f"the run was started in {working_directory}, which no longer exists"
    if shutil.which("torchrun", path=search_path()) is None:
        return "torchrun is not installed: pip install 'trainyard[trainer]'"
    return gpus.too_few(run)


def wrong_settings(runs: Sequence[TrainingRun]) -> tuple[list[list[tuple[Location, str]]], str]:
    """What the recipes find wrong with each run's config, and why they were not asked, if so.

    The first is a list of (location in the run, line) for each run. It takes a process, and
    seconds: the recipes import torch. Raises UserError if the trainer can't be started.
    """
    known = [run for run in runs if _checked_here(run)]
    if known and missing_distributions("trainer"):
        why = "the values in its config were not checked: pip install 'trainyard[trainer]'"
        return [[] for _ in runs], why
    found = iter(_ask_trainer(known))
    strangers = [run.spec.recipe for run in runs if run.spec.recipe and not _checked_here(run)]
    why = ""
    if strangers:
        why = f"its config was not checked: no package here has the recipe {strangers[0]}"
        if strangers[0] in recipe_keys():
            why = "its config was not checked: an image of its own may have another version of it"
    return [next(found) if _checked_here(run) else [] for run in runs], why


def _checked_here(run: TrainingRun) -> bool:
    """Whether the recipe that is installed here is the one that the run trains.

    A built-in one is in the operator's image; one of another package is in an image of its own.
    """
    names = {each.name for each in installed_recipes() if not each.built_in}
    return is_known(run) or run.spec.recipe in names


def _ask_trainer(runs: Sequence[TrainingRun]) -> list[list[tuple[Location, str]]]:
    if not runs:
        return []
    asked = [
        {
            "recipe": run.spec.recipe,
            "config": run.spec.config or {},
            "processes": run.spec.num_nodes * run.nproc,
        }
        for run in runs
    ]
    answers = ask_trainer("check", asked, "the installed trainer can't check the config")
    return [[(("spec", "config", *at), line) for at, line in answer] for answer in answers]


def ask_trainer(module: str, asked: Any, failed: str) -> Any:
    """What a module of the trainer answers (JSON), in a process of its own: recipes import torch.

    Raises UserError, `failed` and the last line it wrote, if it fails.
    """
    # -P: what it imports is never a file of the working directory.
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"trainyard_trainer.{module}"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{failed}: {last}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def ignored_settings(run: TrainingRun) -> list[str]:
    """Names of settings in the manifest that only have an effect in a cluster."""
    spec = run.spec
    fields = {"image": spec.image, "queue": spec.queue}
    names = [name for name, value in fields.items() if value is not None]
    template = spec.pod_template.spec if spec.pod_template else {}
    names += [f"podTemplate.spec.{key}" for key in template if key != "containers"]
    for container in template.get("containers") or []:
        if container.get("name") != "trainer":
            names.append(f"podTemplate container {container.get('name')}")
    names += [
        f"podTemplate env {entry['name']}"
        for entry in run.trainer_template.get("env") or []
        if "name" in entry and "value" not in entry
    ]
    return names


def require_extra(extra: str, purpose: str) -> None:
    """Raises UserError if distributions of an extra are missing; `purpose` is what needs them."""
    if missing := missing_distributions(extra):
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{purpose} needs the {extra} extra ({names} missing): pip install 'trainyard[{extra}]'"
        )


def missing_distributions(extra: str) -> list[str]:
    """Distributions of one of trainyard's extras that are not installed; nothing is imported."""
    marker = f'extra == "{extra}"'
    missing = []
    for requirement in metadata.requires("trainyard") or []:
        if marker not in requirement.replace("'", '"') or not _applies_here(requirement):
            continue
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if installed_version(name) is None:
            missing.append(name)
    return missing


def _applies_here(requirement: str) -> bool:
    """Whether a marker on sys.platform, the only other one that is used, selects this system."""
    other = re.search(r"sys_platform != ['\"](\w+)['\"]", requirement)
    return other is None or other.group(1) != sys.platform
