"""my-recipe: a small network that learns a curve from noisy points."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainyard_trainer.recipes import (
    BRANCH,
    Architecture,
    Batch,
    Changeable,
    ConfigError,
    Ids,
    Noise,
    Recipe,
    TrainConfig,
)


class MyRecipeConfig(TrainConfig):
    """What `spec.config` may hold: these settings, and those of every recipe (TrainConfig).

    Each needs a default. The text below it is its description. `Changeable` may change when a run
    resumes; `Architecture` may not change in a run that starts from another one's weights either.
    """

    max_steps: int = Field(default=300, ge=1)  # only another default
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-2, ge=0)

    num_points: int = Field(default=4096, ge=1)
    """Points to train on."""

    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the points around the curve."""

    hidden_size: Architecture[int] = Field(default=64, ge=1)
    """Channels of the hidden layers."""

    dropout: Changeable[float] = Field(default=0.0, ge=0, lt=1)
    """Dropout probability in training."""


class Points:
    """Samples: any class with a length and `fetch`. A real one would read files.

    Which samples make up a batch is Trainyard's decision, so that a run that resumes sees exactly
    those that it would have seen.
    """

    def __init__(self, count: int, noise: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        x = random.uniform(-3, 3, (count, 1))
        y = np.sin(2 * x) + noise * random.standard_normal(x.shape)
        self.x = torch.from_numpy(x.astype(np.float32))
        self.y = torch.from_numpy(y.astype(np.float32))

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        """The samples with these numbers. `noise`: 64 random bits for each, for augmentation."""
        index = torch.from_numpy(ids)
        return {"x": self.x[index], "y": self.y[index]}


class MyRecipe(Recipe):
    """Made once per process, before the model, from the run's settings."""

    Config = MyRecipeConfig
    # The app that `trainyard serve` answers with: "generate", "classify" or "embed" (see Recipe).
    # There is none for curves.
    serving = None

    train: Points
    held_out: Points

    def __init__(self, config: MyRecipeConfig, saved: dict[str, Any] | None) -> None:
        """`saved`: what `state` returned when the checkpoint was made that the run resumes from."""
        self.config = config
        self.train = Points(config.num_points, config.noise, seed=0)
        self.held_out = Points(512, config.noise, seed=1)
        self.fingerprint = hashlib.sha256(self.train.y.numpy().tobytes()).hexdigest()

    def check_data(self, saved: dict[str, Any]) -> None:
        """Called when a run resumes: a changed file would silently change what it learns."""
        if saved["sha256"] != self.fingerprint:
            raise ConfigError(
                "config: the points are not those that the checkpoint was trained on; restore"
                f" them, or {BRANCH}"
            )

    def state(self) -> dict[str, Any]:
        return {"sha256": self.fingerprint}

    def describe(self) -> str:
        return f"{len(self.train):,} points to train on, {len(self.held_out):,} to evaluate on"

    def build(self) -> nn.Module:
        size, dropout = self.config.hidden_size, nn.Dropout(self.config.dropout)
        return nn.Sequential(
            *(nn.Linear(1, size), nn.GELU(), dropout),
            *(nn.Linear(size, size), nn.GELU(), dropout),
            nn.Linear(size, 1),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error. Evaluation uses it as well, unless `evaluate` is overridden."""
        return F.mse_loss(model(batch["x"]).float(), batch["y"])

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        """Write what it takes to use the model; Trainyard adds a manifest and publishes it."""
        save_file(weights, directory / "model.safetensors")
        config = {"hidden_size": self.config.hidden_size}
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def load_exported(self, directory: Path) -> nn.Module:
        """The model of these files. Trainyard compares it with the trained one, and publishes it
        only if both compute the same: what `outputs` returns, here the loss of held-out points."""
        model = self.build()
        model.load_state_dict(load_file(directory / "model.safetensors"))
        return model.eval()
