"""image-classification: a small ResNet learns to tell classes of small images apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainyard_trainer.augmentation import Augmentation
from trainyard_trainer.class_scores import Scores, class_sums
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data import Batch
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.images import Images, Normalisation, Pixels, decode_images
from trainyard_trainer.labels import Labels, class_names, read_labels
from trainyard_trainer.models.resnet import GROUP_CHANNELS, ResNet, ResNetShape
from trainyard_trainer.models.resnet_export import write_resnet
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.rows import label_names, load_rows

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class ImageClassificationConfig(TrainConfig):
    """Settings of image-classification. The defaults are for CIFAR-10 on a GPU."""

    # The decoded images and their labels are compared themselves.
    free = TrainConfig.free | {"dataset", "eval_dataset", "image_column", "label_column"}

    num_epochs: float | None = Field(default=30, gt=0)
    """Passes over the training images, instead of max_steps. Each pass ends with an evaluation and
    a checkpoint."""

    batch_size: int = Field(default=128, ge=1)
    """Samples of one optimizer step, all ranks and accumulation steps together."""

    optimizer: Literal["adamw", "sgd"] = "sgd"
    """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov momentum."""

    learning_rate: float = Field(default=0.2, ge=0)
    """Highest learning rate, reached after the warm-up."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""

    min_learning_rate: float | None = Field(default=0, ge=0)
    """Where the schedule ends."""

    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay, on matrices only (decoupled in AdamW)."""

    eval_steps: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates only at the end (and after each epoch)."""

    eval_batches: int | None = Field(default=None, ge=1)
    """Global batches of held-out images in one evaluation, always the same ones; null for all."""

    dataset: str = Field(default="hub:uoft-cs/cifar10", min_length=1)
    """Images to train on: hub:OWNER/NAME, a directory with train.parquet and test.parquet, or such
    a file. They are kept decoded in memory."""

    eval_dataset: str | None = Field(default=None, min_length=1)
    """Images to evaluate on. Default: the test split of `dataset`."""

    image_column: str = Field(default="img", min_length=1)
    """Name of the column with the images, all of one size."""

    label_column: str = Field(default="label", min_length=1)
    """Name of the column with the classes, numbers from 0."""

    labels: list[str] | None = Field(default=None, min_length=2)
    """Names of the classes 0, 1, ... Default: those the data set has."""

    embedding_size: int = Field(default=64, ge=1, multiple_of=GROUP_CHANNELS)
    """Channels of the first convolution, at full resolution."""

    hidden_sizes: list[int] = Field(default=[64, 128, 256], min_length=1)
    """Channels of each stage (the model's width)."""

    depths: list[int] = Field(default=[2, 2, 2], min_length=1)
    """Basic blocks of each stage, two convolutions each (the model's depth)."""

    downsample_in_first_stage: bool = False
    """Halve height and width in the first stage already, as every later one does: much faster,
    somewhat less accurate."""

    crop_padding: int = Field(default=4, ge=0)
    """Shift each training image at random, by up to so many pixels in each direction."""

    horizontal_flip: bool = True
    """Mirror every other training image; not for digits or letters."""

    cutout_size: int = Field(default=0, ge=0)
    """Blank a random square of this many pixels in each training image; 0 for none."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each target that is spread over all classes (Szegedy et al., 2016)."""

    @model_validator(mode="after")
    def _stages_match(self) -> Self:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths has {len(self.depths)} stages, hidden_sizes {len(self.hidden_sizes)}"
            )
        if min(self.depths) < 1:
            raise ValueError(f"depths {self.depths}: a stage has 1 block at least")
        if wrong := [size for size in self.hidden_sizes if size < 1 or size % GROUP_CHANNELS]:
            raise ValueError(f"hidden_sizes: {wrong[0]} is not a multiple of {GROUP_CHANNELS}")
        return self


@dataclass(frozen=True)
class _Rows:
    """A split's table, and how errors begin that are about it."""

    where: str
    table: "pa.Table"


class ImageClassification(Recipe):
    """A residual network from scratch, on images that fit into memory."""

    Config = ImageClassificationConfig
    train: Images
    held_out: Images

    def __init__(self, config: ImageClassificationConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        if config.eval_dataset is None and Path(config.dataset).is_file():
            raise ConfigError(
                f"config.eval_dataset: set it; {config.dataset} is one file, with nothing held out"
            )
        train = self._rows("dataset", config.dataset, "train")
        held_out_key = "dataset" if config.eval_dataset is None else "eval_dataset"
        held_out = self._rows(held_out_key, config.eval_dataset or config.dataset, "test")
        names = config.labels or label_names(train.table, config.label_column)
        labels = self._labels(train, names)
        self.classes = class_names(train.where, labels, names)
        held_out_labels = self._labels(held_out, self.classes)

        pixels = self._pixels(train)
        self.normalisation = Normalisation.of(pixels)
        self.train = Images(pixels, labels, self._augmentation(pixels))
        self.held_out = Images(self._pixels(held_out), held_out_labels)
        if self.held_out.size != self.train.size:
            raise ConfigError(
                f"{held_out.where}: the images are {self.held_out.size_text} pixels, those to"
                f" train on {self.train.size_text}; bring all to one size first"
            )
        self.fingerprint = [self.train.sha256(), self.held_out.sha256()]
        if saved and saved["samples_sha256"] != self.fingerprint:
            raise ConfigError(
                f"{train.where} does not give the images and labels the checkpoint was trained on;"
                " bring them back, or start a run under another name"
            )
        self.shape = ResNetShape(
            num_labels=len(self.classes),
            embedding_size=config.embedding_size,
            hidden_sizes=tuple(config.hidden_sizes),
            depths=tuple(config.depths),
            downsample_in_first_stage=config.downsample_in_first_stage,
        )

    def _rows(self, key: str, source: str, split: str) -> _Rows:
        columns = [self.config.image_column, self.config.label_column]
        return _Rows(f"config.{key}: {source}", load_rows(key, source, split, columns))

    def _labels(self, rows: _Rows, names: list[str] | None) -> Labels:
        column = self.config.label_column
        return read_labels(f"{rows.where}: {column}", rows.table[column], names)

    def _pixels(self, rows: _Rows) -> Pixels:
        column = self.config.image_column
        return decode_images(f"{rows.where}: {column}", rows.table[column])

    def _augmentation(self, pixels: Pixels) -> Augmentation:
        config, shortest = self.config, min(pixels.shape[1:3])
        for key in ("crop_padding", "cutout_size"):
            if getattr(config, key) >= shortest:
                raise ConfigError(
                    f"config.{key}: {getattr(config, key)} pixels, but the images have only"
                    f" {shortest}; lower it"
                )
        grey = (255 * self.normalisation.mean).round().byte().numpy()
        return Augmentation(config.crop_padding, config.horizontal_flip, config.cutout_size, grey)

    def state(self) -> dict[str, Any]:
        return {"labels": self.classes, "samples_sha256": self.fingerprint}

    def describe(self) -> str:
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return (
            f"{self.config.dataset}: {len(self.train):,} images of {self.train.size_text} pixels to"
            f" train on, {len(self.held_out):,} to evaluate on, {len(self.classes)} classes"
            f" ({shown})"
        )

    def build(self) -> nn.Module:
        return ResNet(self.shape)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return cast(ResNet, model).blocks

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats, with smoothed labels."""
        smoothing = self.config.label_smoothing
        logits = self._logits(model, batch)
        return F.cross_entropy(logits.float(), batch["labels"], label_smoothing=smoothing)

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        return class_sums(self._logits(model, batch), batch["labels"])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        return Scores.of(sums, self.classes).metrics()

    def table(self, sums: list[float]) -> str:
        return Scores.of(sums, self.classes).table()

    def details(self, sums: list[float]) -> dict[str, Any]:
        return Scores.of(sums, self.classes).details()

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        write_resnet(
            weights, self.shape, self.classes, self.train.size, self.normalisation, directory
        )

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape (batch, classes)."""
        return cast(Tensor, model(self.normalisation(batch["pixels"])))


RECIPE = ImageClassification
