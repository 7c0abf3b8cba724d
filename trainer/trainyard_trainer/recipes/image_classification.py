"""image-classification: a small ResNet that classifies small images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainyard_trainer.data.images import Augmentation, Images, Pixels, decode_images
from trainyard_trainer.data.rows import listed
from trainyard_trainer.models.resnet import GROUP_CHANNELS, ResNet, ResNetShape
from trainyard_trainer.models.resnet_export import Normalisation, read_resnet, write_resnet
from trainyard_trainer.recipes import Architecture, Batch, Changeable, ConfigError
from trainyard_trainer.recipes.classification import Classification, ClassificationConfig, Split


class ImageClassificationConfig(ClassificationConfig):
    """Settings of image-classification. The defaults are for CIFAR-10 on a GPU."""

    num_epochs: float | None = Field(default=30, gt=0)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "sgd"
    learning_rate: float = Field(default=0.2, ge=0)
    min_learning_rate: float | None = Field(default=0, ge=0)
    """Learning rate at the end of the schedule."""

    weight_decay: float = Field(default=5e-4, ge=0)

    dataset: str = Field(default="hub:uoft-cs/cifar10", min_length=1)
    """Training images: hub:OWNER/NAME, a directory with train.parquet and test.parquet, or a
    parquet file; both may also be at s3://BUCKET/PATH or
    hf://datasets/OWNER/NAME[@REVISION]/PATH. They are decoded once and kept in memory."""

    image_column: Changeable[str] = Field(default="img", min_length=1)
    """The image column; all images have one size."""

    embedding_size: Architecture[int] = Field(default=64, ge=1, multiple_of=GROUP_CHANNELS)
    """Channels of the first convolution, at full resolution."""

    hidden_sizes: Architecture[list[int]] = Field(default=[64, 128, 256], min_length=1)
    """Channels of each stage (the model's width)."""

    depths: Architecture[list[int]] = Field(default=[2, 2, 2], min_length=1)
    """Basic blocks of each stage, two convolutions each (the model's depth)."""

    downsample_in_first_stage: Architecture[bool] = False
    """Halve height and width in the first stage already, as every later one does: much faster,
    somewhat less accurate."""

    crop_padding: int = Field(default=4, ge=0)
    """Shift each training image at random, by up to this many pixels in each direction."""

    horizontal_flip: bool = True
    """Mirror training images at random, half of them; not for digits or letters."""

    cutout_size: int = Field(default=0, ge=0)
    """Blank a random square of this side length, in pixels, in each training image; 0 for none."""

    label_smoothing: Changeable[float] = Field(default=0.1, ge=0, lt=1)
    """Fraction of each target that is spread over all classes (Szegedy et al., 2016)."""

    @model_validator(mode="after")
    def _stages_match(self) -> Self:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths has {len(self.depths)} stages, hidden_sizes {len(self.hidden_sizes)}"
            )
        if min(self.depths) < 1:
            raise ValueError(f"depths {self.depths}: a stage needs at least 1 block")
        if wrong := [size for size in self.hidden_sizes if size < 1 or size % GROUP_CHANNELS]:
            raise ValueError(f"hidden_sizes: {wrong[0]} is not a multiple of {GROUP_CHANNELS}")
        return self


class ImageClassification(Classification):
    """A residual network, trained from scratch on images that fit into memory."""

    Config = ImageClassificationConfig
    config: ImageClassificationConfig
    train: Images
    held_out: Images

    @classmethod
    def outline(cls, config: ImageClassificationConfig) -> Self:
        """Of the data, the classes and the first image are read."""
        recipe = cls.__new__(cls)
        recipe.config = config
        column = config.image_column
        train = Split("dataset", config.dataset, "train", column, config.label_column)
        pixels = decode_images(train.about(column), train.rows.read(0, 1)[column])
        recipe.classes = config.labels or cls.read_classes(config, column)
        recipe.normalisation = Normalisation.of(pixels)
        recipe.train = Images(pixels, np.zeros(1, np.int64), recipe._augmentation(pixels))
        recipe.shape = recipe._shape()
        return recipe

    def __init__(self, config: ImageClassificationConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        train, held_out = self.load(config.image_column)
        pixels = self._decode(train)
        self.normalisation = Normalisation.of(pixels)
        self.train = Images(pixels, train.labels, self._augmentation(pixels))
        self.held_out = Images(self._decode(held_out), held_out.labels)
        if self.held_out.size != self.train.size:
            raise ConfigError(
                f"{held_out.where}: the images are {self.held_out.size_text} pixels, the"
                f" training images {self.train.size_text}; resize all to one size"
            )
        self.fingerprint = [self.train.sha256(), self.held_out.sha256()]
        self.shape = self._shape()

    def _shape(self) -> ResNetShape:
        config = self.config
        return ResNetShape(
            num_labels=len(self.classes),
            embedding_size=config.embedding_size,
            hidden_sizes=tuple(config.hidden_sizes),
            depths=tuple(config.depths),
            downsample_in_first_stage=config.downsample_in_first_stage,
        )

    def _decode(self, split: Split) -> Pixels:
        column = self.config.image_column
        return decode_images(split.about(column), split.rows.column(column))

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

    def describe(self) -> str:
        return (
            f"{self.config.dataset}: {len(self.train):,} images of {self.train.size_text} pixels to"
            f" train on, {len(self.held_out):,} to evaluate on, {len(self.classes)} classes"
            f" ({listed(self.classes)});"
            f" {self.about}"
        )

    def build(self) -> nn.Module:
        return ResNet(self.shape)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return cast(ResNet, model).blocks

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats, with smoothed labels."""
        smoothing = self.config.label_smoothing
        logits = self.logits(model, batch)
        return F.cross_entropy(logits.float(), batch["labels"], label_smoothing=smoothing)

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        write_resnet(
            weights, self.shape, self.classes, self.train.size, self.normalisation, directory
        )

    def load_exported(self, directory: Path) -> nn.Module:
        return read_resnet(directory)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return cast(Tensor, model(self.normalisation(batch["pixels"])))
