"""char-gpt: a GPT that reads and writes characters, from any text."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainyard_trainer.char_tokenizer import CharTokenizer
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.corpus import load_text
from trainyard_trainer.data import Batch, Ids, Noise
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.models.gpt import GPT, GPTShape
from trainyard_trainer.models.gpt_export import write_gpt2
from trainyard_trainer.recipes.base import Recipe


class CharGPTConfig(TrainConfig):
    """Settings of char-gpt."""

    free = TrainConfig.free | {"corpus", "sample_tokens", "prompt"}  # the text itself is compared

    corpus: str = Field(default="stdlib", min_length=1)
    """stdlib, a text file, a directory or glob of text files, or hub:OWNER/NAME[:COLUMN]."""

    eval_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the text, at its end, that is held out for evaluation."""

    block_size: int = Field(default=128, ge=2)
    """Characters the model sees at once."""

    n_layer: int = Field(default=4, ge=1)
    """Transformer layers."""

    n_head: int = Field(default=4, ge=1)
    """Attention heads; must divide n_embd."""

    n_embd: int = Field(default=128, ge=1)
    """Channels of the residual stream."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped in training."""

    sample_tokens: int = Field(default=240, ge=1)
    """Characters of each sample."""

    prompt: str = Field(default="\n", min_length=1)
    """What samples begin with."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head ({self.n_head}) must divide n_embd ({self.n_embd})")
        return self


class Windows:
    """Every stretch of block_size + 1 characters; a sample's id is where it starts."""

    def __init__(self, tokens: npt.NDArray[np.int32], block_size: int) -> None:
        self.tokens = tokens
        self._offsets = np.arange(block_size + 1)

    def __len__(self) -> int:
        return len(self.tokens) - len(self._offsets) + 1

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), block_size)."""
        windows = torch.from_numpy(self.tokens[ids[:, None] + self._offsets]).long()
        return {"ids": windows[:, :-1], "targets": windows[:, 1:]}


class CharGPT(Recipe):
    """A small GPT over characters."""

    Config = CharGPTConfig

    def __init__(self, config: CharGPTConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        text = load_text(config.corpus)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        if saved and saved["corpus_sha256"] != self.fingerprint:
            raise ConfigError(
                f"config.corpus: {config.corpus} is not the text the checkpoint was trained on"
                f" (sha256 {self.fingerprint[:12]}, then {saved['corpus_sha256'][:12]});"
                " bring that text back, or start a run under another name"
            )
        self.tokenizer = CharTokenizer(saved["characters"]) if saved else CharTokenizer.of(text)
        tokens = self.tokenizer.encode(text)
        self.num_characters = len(tokens)
        num_held_out = int(len(tokens) * config.eval_fraction)
        if min(num_held_out, len(tokens) - num_held_out) <= config.block_size:
            needed = int((config.block_size + 1) / min(config.eval_fraction, 0.5)) + 1
            raise ConfigError(
                f"config.corpus: {config.corpus} has {len(tokens)} characters, too few for"
                f" block_size {config.block_size}: give at least {needed}, or lower block_size"
            )
        self.train = Windows(tokens[:-num_held_out], config.block_size)
        self.held_out = Windows(tokens[-num_held_out:], config.block_size)
        self.tokens_per_sample = config.block_size
        self.shape = GPTShape(
            vocab_size=self.tokenizer.vocab_size,
            block_size=config.block_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            dropout=config.dropout,
        )

    def state(self) -> dict[str, Any]:
        return {"characters": self.tokenizer.characters, "corpus_sha256": self.fingerprint}

    def describe(self) -> str:
        different = len(self.tokenizer.characters)
        return f"{self.config.corpus}: {self.num_characters:,} characters, {different} different"

    def build(self) -> nn.Module:
        return GPT(self.shape)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return cast(GPT, model).h

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats per character."""
        logits = model(batch["ids"])
        return F.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())

    def sample(self, model: nn.Module, step: int) -> str:
        device = next(model.parameters()).device
        prompt = torch.from_numpy(self.tokenizer.encode(self.config.prompt)).long()[None].to(device)
        generator = torch.Generator().manual_seed(step)
        ids = cast(GPT, model).generate(prompt, self.config.sample_tokens, generator)
        return self.tokenizer.decode(ids[0].tolist())

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        write_gpt2(weights, self.shape, directory)
        self.tokenizer.save(directory, self.config.block_size)


RECIPE = CharGPT
