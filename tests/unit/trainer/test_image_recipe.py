"""image-classification in real processes: strategies, resuming, exact scores, clear refusals."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from tests.support.trainer.ranks import RankServer, tiny_job
from trainyard_api.checkpoint import MODELS
from trainyard_api.job import EXIT_CONFIG, RUN_DIR_ENV, TrainerJob
from trainyard_storage.checkpoints import verify
from trainyard_trainer.config import parse_config
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.image_classification import (
    ImageClassification,
    ImageClassificationConfig,
)

MakeJob = Callable[..., TrainerJob]
NAMES = ["dark", "red", "blue"]
COLOURS = np.array([(40, 40, 40), (200, 60, 60), (60, 60, 200)])


def table(num_rows: int, seed: int, **columns: Any) -> pa.Table:
    """Noisy images of one of three colours, labelled, with the names Hugging Face would note."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_rows) % 3)
    noise = rng.integers(-40, 40, (num_rows, 16, 16, 3))
    images = []
    for pixels in (COLOURS[labels][:, None, None] + noise).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    features = {"label": {"names": NAMES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({"img": images, "label": labels} | columns).replace_schema_metadata(metadata)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    parquet.write_table(table(96, 0), folder / "train.parquet")
    parquet.write_table(table(23, 1), folder / "test.parquet")
    return folder


@pytest.fixture
def make_job(tmp_path: Path, dataset: Path, rank_server: RankServer) -> MakeJob:
    """Builds a job of a tiny ResNet; keyword arguments go into its config, `job` beside it."""
    rank_server.preload("trainyard_trainer.recipes.image_classification", "pyarrow.parquet")

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        settings = {
            "dataset": str(dataset),
            "max_steps": 12,
            "batch_size": 12,
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "learning_rate": 0.03,
            "log_steps": 1,
        }
        fields = {"checkpoint": {"everySteps": 6}} | (job or {})
        return tiny_job(tmp_path, "image-classification", settings | config, **fields)

    return make


def test_every_held_out_image_counts_once(make_job: MakeJob, train: Any) -> None:
    # 23 images for two ranks with batches of 6: the last one is smaller, and one rank has none.
    run = train(make_job(), ranks=2)
    assert run.losses()[12] < run.losses()[1] - 0.2
    found = json.loads((run.run_dir / "evaluation.json").read_text())
    matrix = np.array(found["confusion_matrix"])
    labels = table(23, 1)["label"].to_numpy()
    assert matrix.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert found["accuracy"] == matrix.trace() / 23
    assert found["labels"] == NAMES
    model = verify(run.run_dir / MODELS / "step-00000012")
    assert {"model.safetensors", "preprocessor_config.json", "resnet_hf.py"} <= model.files.keys()
    assert model.metrics["accuracy"] == found["accuracy"]


def test_how_a_batch_is_split_changes_nothing_but_rounding(
    make_job: MakeJob, train: Any, tmp_path: Path
) -> None:
    whole = train(make_job({"run_dir": str(tmp_path / "whole")}, max_steps=6))
    job = {"run_dir": str(tmp_path / "split")}
    split = train(make_job(job, max_steps=6, gradient_accumulation_steps=3), ranks=2)
    assert split.losses() == pytest.approx(whole.losses(), abs=1e-4)


@pytest.mark.parametrize(
    ("precision", "sharding", "steps"),
    # CPUs take 100 times as long for convolutions in fp16.
    [("fp16", "FULL_SHARD", 4), ("bf16", "SHARD_GRAD_OP", 12)],
)
def test_fsdp_learns_with_activation_checkpointing(
    make_job: MakeJob, train: Any, precision: str, sharding: str, steps: int
) -> None:
    job = make_job(
        {"strategy": "fsdp", "precision": precision},
        max_steps=steps,
        sharding_strategy=sharding,
        activation_checkpointing=True,
        optimizer="adamw",
        learning_rate=3e-3,
    )
    run = train(job, ranks=2)
    assert run.losses()[steps] < run.losses()[1] - 0.1
    model = run.run_dir / MODELS / f"step-{steps:08d}"
    assert json.loads((model / "config.json").read_text())["dtype"] == "float32"


def test_a_resumed_run_ends_with_the_same_bytes(
    make_job: MakeJob, train: Any, tmp_path: Path
) -> None:
    settings = {"cutout_size": 4, "lr_decay_steps": 12, "num_epochs": None}
    whole = train(make_job({"run_dir": str(tmp_path / "whole")}, **settings), ranks=2)
    job = {"run_dir": str(tmp_path / "parts")}
    train(make_job(job, **settings | {"max_steps": 6}), ranks=2)
    parts = train(make_job(job | {"attempt": 2}, dataloader_num_workers=2, **settings), ranks=2)
    assert parts.result["resumedFromStep"] == 6
    digests = [
        verify(run.run_dir / MODELS / "step-00000012").files["model.safetensors"].sha256
        for run in (whole, parts)
    ]
    assert digests[0] == digests[1]


def load(**settings: Any) -> ImageClassification:
    return ImageClassification(parse_config(ImageClassificationConfig, settings), None)


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3] * 3, "row 3 has label 3; there are 3 classes (dark, red, blue)"),
        ([0, 1, -1] * 4, "row 2 has label -1"),
        ([0.5] * 12, "label of train holds double; classes must be the numbers 0, 1, 2, ..."),
        ([0, 1] * 6, "no row of 12 has label 2 (blue)"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, labels: list[Any], message: str) -> None:
    parquet.write_table(table(12, 0, label=labels), tmp_path / "train.parquet")
    parquet.write_table(table(12, 0), tmp_path / "test.parquet")
    assert message in refused(dataset=str(tmp_path))


def test_data_that_does_not_fit_is_named(dataset: Path, tmp_path: Path) -> None:
    train = str(dataset / "train.parquet")
    assert refused(dataset=train).startswith("config.eval_dataset: set it; ")
    assert "has no column image; it has img, label" in refused(
        dataset=str(dataset), image_column="image"
    )
    assert refused(dataset=str(dataset), crop_padding=16) == (
        "config.crop_padding: 16 pixels, but the images have only 16; lower it"
    )
    message = refused(dataset=str(dataset), labels=["a", "b"])
    assert "has label 2; there are 2 classes (a, b)" in message

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    other = tmp_path / "other.parquet"
    parquet.write_table(table(3, 0, img=[{"bytes": file.getvalue(), "path": None}] * 3), other)
    assert (
        "the images are 8x8 pixels, the training images 16x16; resize all to one size"
        in refused(dataset=train, eval_dataset=str(other))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": [1, 1]}, "depths has 2 stages, hidden_sizes 3"),
        ({"depths": [1, 0, 1]}, "a stage needs at least 1 block"),
        ({"hidden_sizes": [16, 20, 32]}, "hidden_sizes: 20 is not a multiple of 16"),
        ({"embedding_size": 24}, "embedding_size: input should be a multiple of 16 (got 24)"),
    ],
)
def test_impossible_shapes_are_named(settings: dict[str, Any], message: str) -> None:
    assert message in refused(**settings)


def test_a_checkpoint_refuses_other_images(dataset: Path, tmp_path: Path) -> None:
    state = load(dataset=str(dataset)).state()
    parquet.write_table(table(96, 2), tmp_path / "train.parquet")
    parquet.write_table(table(23, 1), tmp_path / "test.parquet")
    config = parse_config(ImageClassificationConfig, {"dataset": str(tmp_path)})
    other = ImageClassification(config, state)
    with pytest.raises(ConfigError, match="does not have the samples that the checkpoint was"):
        other.check_data(state)


def test_more_samples_than_there_are_in_a_batch_is_one_line(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(batch_size=98), ranks=2)
    assert EXIT_CONFIG in run.wait()
    assert "config.batch_size: 98 samples make a step, but there are only 96" in run.err
    assert "Traceback" not in run.err
