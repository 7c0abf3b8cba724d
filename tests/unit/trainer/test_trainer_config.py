"""Settings and the learning-rate schedule they describe."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from trainyard_api.job import TrainerJob
from trainyard_api.recipe_packages import built_in_recipes
from trainyard_api.run import TrainingRun
from trainyard_trainer.config import (
    ARCHITECTURE,
    CHANGEABLE,
    TrainConfig,
    check_batch_size,
    check_resumable,
    differences,
    parse_config,
)
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.jobs import from_manifest, read_job
from trainyard_trainer.optim import learning_rate
from trainyard_trainer.recipes.gpt_base import GPTConfig
from trainyard_trainer.registry import find_recipe

EXAMPLES = Path(__file__).parents[3] / "examples"
RUNS = [path for path in sorted(EXAMPLES.glob("*.yaml")) if "  recipe: " in path.read_text()]
RUNS = [path for path in RUNS if "kind: TrainingRun" in path.read_text()]  # not studies


def test_every_setting_is_described() -> None:
    for recipe in built_in_recipes():
        for name, field in find_recipe(recipe).Config.model_fields.items():
            assert field.description, f"{recipe}: {name}"


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, {"max_step": 1, "batch_size": -1, "zzz": 1})
    message = str(caught.value)
    assert "config.max_step: unknown key; did you mean max_steps?" in message
    assert "config.batch_size: input should be greater than or equal to 1 (got -1)" in message
    assert "config.zzz: unknown key (known: max_steps, num_epochs, batch_size, " in message
    assert "\n" not in message


def test_mistakes_below_a_setting_are_named_by_its_own_keys() -> None:
    class Window(BaseModel):
        model_config = ConfigDict(extra="forbid")
        start: int = 0

    class Windowed(TrainConfig):
        window: Window | None = None

    with pytest.raises(ConfigError) as caught:
        parse_config(Windowed, {"window": {"star": 1, "zzz": 1}})
    message = str(caught.value)
    assert "config.window.star: unknown key; did you mean start?" in message
    assert "config.window.zzz: unknown key (known: start)" in message


def test_exponents_as_yaml_reads_them() -> None:
    # YAML 1.1 takes 1e-3 for a string.
    raw = yaml.safe_load("learning_rate: 1e-3")
    assert parse_config(TrainConfig, raw).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("size", "use"), [(33, "use 32 or 36"), (3, "use 4"), (5, "use 4 or 8"), (8, None)]
)
def test_batches_that_cannot_be_shared(size: int, use: str | None) -> None:
    config = TrainConfig(batch_size=size, gradient_accumulation_steps=2)
    if use is None:
        check_batch_size(config, 2)
    else:
        with pytest.raises(ConfigError, match=re.escape(use)):
            check_batch_size(config, 2)


def settings(**values: Any) -> dict[str, Any]:
    """What a checkpoint records of a run on 1,000 samples."""
    return TrainConfig(**values).for_samples(1000).model_dump()


def test_settings_that_define_the_run_must_stay() -> None:
    old = settings(max_steps=100)

    def check(**values: Any) -> None:
        check_resumable("config", differences(old, settings(**values)), GPTConfig, 5)

    check(max_steps=200)
    check(max_steps=100, log_steps=1)
    check(max_steps=100, learning_rate=0.1)
    with pytest.raises(
        ConfigError, match=r"config\.batch_size: 8, .* trained with 32; set it back"
    ):
        check(max_steps=100, batch_size=8)


def test_a_recipe_with_another_default_inherits_the_mark() -> None:
    """Every setting of every recipe is changeable, fixed or architecture, and not two of these."""
    for name in built_in_recipes():
        config = find_recipe(name).Config
        changeable, architecture = config.marked(CHANGEABLE), config.marked(ARCHITECTURE)
        assert not changeable & architecture
        assert changeable >= TrainConfig.marked(CHANGEABLE)
        assert not changeable & {"batch_size", "optimizer", "num_labels", "slice"}
    assert find_recipe("gpt").Config.marked(ARCHITECTURE) >= {"n_layer", "n_head", "block_size"}


def test_epochs_become_steps() -> None:
    config = TrainConfig(num_epochs=3, batch_size=32).for_samples(1000)
    assert (config.max_steps, config.lr_decay_steps) == (94, 94)  # 3000 samples, the last 8 again
    with pytest.raises(ConfigError, match="set num_epochs or max_steps, not both"):
        parse_config(TrainConfig, {"num_epochs": 1, "max_steps": 1})

    class Epochs(TrainConfig):
        num_epochs: float | None = 3

    assert Epochs().num_epochs == 3
    assert Epochs(max_steps=5).for_samples(1000).max_steps == 5  # what is set beats a default
    with pytest.raises(ConfigError, match="32 samples make a step, but there are only 31"):
        TrainConfig(batch_size=32).for_samples(31)


def test_warm_up_cosine_and_floor() -> None:
    config = TrainConfig(
        max_steps=300, learning_rate=1.0, min_learning_rate=0.2, warmup_steps=10, lr_decay_steps=110
    )
    rates = [learning_rate(config, step) for step in range(300)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == rates[299] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_examples_are_jobs(path: Path, tmp_path: Path) -> None:
    job = from_manifest(path, tmp_path, 0)
    run = TrainingRun.model_validate(yaml.safe_load(path.read_text()))
    config = parse_config(find_recipe(job.recipe).Config, job.config)
    check_batch_size(config, run.spec.num_nodes * run.nproc)
    # Some checkpoints then know their evaluation loss, by which the best one is kept.
    if config.num_epochs is None:
        assert job.checkpoint.every_steps % config.eval_steps == 0


def test_a_manifest_counts_its_attempts(tmp_path: Path) -> None:
    path = str(EXAMPLES / "quickstart.yaml")
    (tmp_path / "attempt").write_text("4\n")
    job = read_job([path, "--run-dir", str(tmp_path)])
    assert job.attempt == 5
    (tmp_path / "attempt").write_text("four")
    with pytest.raises(ConfigError, match="not an attempt number"):
        read_job([path, "--run-dir", str(tmp_path)])


def test_the_job_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    job = TrainerJob(run="r", recipe="char-gpt", run_dir="/x", report_port=1)
    monkeypatch.setenv("TRAINYARD_JOB", job.model_dump_json(by_alias=True))
    assert read_job([]) == job
    monkeypatch.setenv("TRAINYARD_JOB", '{"run": "r"}')
    with pytest.raises(ConfigError, match="TRAINYARD_JOB: recipe: Field required"):
        read_job([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (": :", "not YAML"),
        ("kind: Pod", "kind: Input should be 'TrainingRun'"),
        (
            "{apiVersion: trainyard.dev/v1alpha1, kind: TrainingRun, metadata: {name: a},"
            " spec: {command: [train.py]}}",
            "spec.command is your own script: start it with torchrun",
        ),
    ],
)
def test_manifests_that_cannot_be_run(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_manifest(path, None, 0)
