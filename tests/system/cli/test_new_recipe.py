"""A package that `trainyard new recipe` has written: installed, tested, trained and published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.manifests.refused import run
from tests.support.trainer.packages import install
from trainyard_api.checkpoint import MODELS
from trainyard_local.store import HOME_ENV
from trainyard_storage.checkpoints import newest_valid

NAME = "sine-fit"


class Installed:
    """The written package, installed into a folder that only these commands see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / NAME
        site = folder / "site"
        self.python("-m", "trainyard_cli.main", "new", "recipe", NAME)
        offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation")
        self.python("-m", "pip", "install", *offline, "--target", str(site), str(self.package))

    def python(self, *words: str, status: int = 0) -> str:
        """What a program printed that ends with this status."""
        home, site = str(self.folder / "home"), str(self.folder / "site")
        done = subprocess.run(
            [sys.executable, "-P", *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": site, HOME_ENV: home, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def trainyard(self, *words: str, status: int = 0) -> str:
        return self.python("-m", "trainyard_cli.main", *words, status=status)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("new"))


def test_its_own_test_passes(installed: Installed) -> None:
    said = installed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(installed.package))
    assert "2 passed" in said


def test_its_manifest_trains_and_publishes_a_model(installed: Installed) -> None:
    manifest = installed.package / "run.yaml"
    rows = [line.split() for line in installed.trainyard("recipes").splitlines()]
    assert [NAME, NAME, "0.1.0"] in rows
    assert installed.trainyard("validate", str(manifest)).endswith(f"{NAME} is valid\n")
    said = installed.trainyard("run", str(manifest))
    assert f"{NAME} succeeded" in said
    assert "trainyard serve" not in said, "no app answers from its models"
    directory, model, _ = newest_valid(installed.folder / "home/runs" / NAME / "data" / MODELS)
    assert directory is not None
    assert model is not None
    assert (model.recipe, model.step, model.serving) == (NAME, 300, None)
    assert (directory / "model.safetensors").is_file()


def test_a_recipe_of_another_package_is_served_by_the_app_that_it_names(
    installed: Installed,
) -> None:
    module = "from trainyard_trainer.recipes.char_gpt import CharGPT\n\n\nclass Mine(CharGPT): ..."
    install(installed.folder / "site", "their-gpt", {"their-gpt": "their:Mine"}, their=module)
    config = {"max_steps": 2, "block_size": 32, "n_layer": 1, "n_embd": 32, "eval_batches": 1}
    manifest = installed.folder / "served.yaml"
    manifest.write_text(yaml.safe_dump(run("their-gpt", config, suspend=False)))
    said = installed.trainyard("run", str(manifest))
    assert "next    trainyard serve good" in said
    answer = installed.trainyard("serve", "good", "--prompt", "def ", "--max-tokens", "5")
    assert answer.startswith("def ")
    assert len(answer) > len("def ")


def test_a_setting_that_it_does_not_have_is_one_line(installed: Installed) -> None:
    wrong = yaml.safe_load((installed.package / "run.yaml").read_text())
    wrong["metadata"]["name"] = "misspelt"
    wrong["spec"]["config"]["hiden_size"] = 8
    manifest = installed.folder / "misspelt.yaml"
    manifest.write_text(yaml.safe_dump(wrong))
    line = "config.hiden_size: unknown key; did you mean hidden_size?"
    assert f": {line}" in installed.trainyard("validate", str(manifest), status=2)
    said = installed.trainyard("run", str(manifest), status=1)
    assert f"misspelt failed: ConfigError: misspelt-1-0: {line}" in said


def test_without_its_package_the_run_says_which_recipes_there_are(installed: Installed) -> None:
    wrong = yaml.safe_load((installed.package / "run.yaml").read_text())
    wrong["metadata"]["name"] = "elsewhere"
    wrong["spec"]["recipe"] = "cosine-fit"
    manifest = installed.folder / "elsewhere.yaml"
    manifest.write_text(yaml.safe_dump(wrong))
    said = installed.trainyard("run", str(manifest), status=1)
    assert "recipe: cosine-fit: unknown; known recipes: causal-lm-finetune, " in said
    assert f", {NAME}, " in said
