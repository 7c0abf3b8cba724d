"""gpt: GPT-2 pre-trained from scratch, on token files or on text."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from trainyard_trainer.data.tokenizers import BPETokenizer
from trainyard_trainer.data.tokens import Tokens, Windows, check_tokens, load_tokens, split
from trainyard_trainer.models.gpt import write_gpt2
from trainyard_trainer.recipes import BRANCH, Architecture, Batch, Changeable, ConfigError
from trainyard_trainer.recipes.gpt_base import GPTConfig, GPTRecipe


class BPEGPTConfig(GPTConfig):
    """Settings of gpt. The defaults are GPT-2 small, of 124 million parameters, with the optimizer
    settings of GPT-3 (Brown et al., 2020, table 2.1)."""

    corpus: str = Field(default="stdlib", min_length=1)
    """With texts in text_column: a parquet, csv or jsonl file; hub:OWNER/NAME[:CONFIG]; or such a
    file, or a directory with train.parquet (or jsonl), at s3://BUCKET/PATH or
    hf://datasets/OWNER/NAME[@REVISION]/PATH. A text file, a directory or glob of them; stdlib; or a
    token file: .npy, or .bin of little-endian uint16 (uint32 if the tokenizer has more than 65,536
    tokens). Text is tokenised once and kept in .cache beside the run's directory."""

    text_column: Changeable[str] = Field(default="text", min_length=1)
    """The text column of a table."""

    tokenizer: Changeable[str] = Field(default="openai-community/gpt2", min_length=1)
    """A Hub id, or a directory with tokenizer.json."""

    pad_vocab_to_multiple_of: Architecture[int] = Field(default=64, ge=1)
    """Pad the vocabulary to a multiple of this in training, for fast matrix products on GPUs; the
    exported model is not padded."""

    block_size: int = Field(default=1024, ge=2)
    """Context length in tokens."""

    n_layer: int = Field(default=12, ge=1)
    """Transformer layers."""

    n_head: int = Field(default=12, ge=1)
    """Attention heads; must divide n_embd."""

    n_embd: int = Field(default=768, ge=1)
    """Channels of the residual stream."""

    max_steps: int = Field(default=5000, ge=1)
    """Optimizer steps of the whole run."""

    learning_rate: float = Field(default=6e-4, ge=0)
    """Peak learning rate, reached after the warm-up."""

    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's mean of the squared gradient."""

    sample_tokens: int = Field(default=100, ge=1)
    """Tokens to generate for each sample."""


class BPEGPT(GPTRecipe):
    """GPT-2 over byte-pair tokens."""

    Config = BPEGPTConfig
    config: BPEGPTConfig

    def __init__(self, config: BPEGPTConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        self.tokenizer = BPETokenizer(config.tokenizer)
        if saved and saved["tokenizer_sha256"] != self.tokenizer.fingerprint:
            raise ConfigError(
                f"config.tokenizer: {config.tokenizer} is not the tokenizer the checkpoint was"
                " trained with, and its weights fit no other; set it back"
            )
        tokens, self.about = load_tokens(config.corpus, config.text_column, self.tokenizer)
        self.num_tokens = len(tokens)
        # Each token is a target once per epoch.
        self.train, self.held_out = split(
            tokens,
            config.block_size,
            config.eval_fraction,
            config.block_size,
            f"config.corpus: {config.corpus}",
            "tokens",
        )
        self.fingerprint = check_tokens(tokens, self.tokenizer, config.corpus)
        self.tokens_per_sample = config.block_size
        self.shape = config.shape(self._padded_vocab_size())

    @classmethod
    def outline(cls, config: BPEGPTConfig) -> Self:
        recipe = cls.__new__(cls)
        recipe.config = config
        recipe.tokenizer = BPETokenizer(config.tokenizer)
        size = config.block_size + 1
        recipe.train = Windows(Tokens([np.zeros(size, np.int64)]), config.block_size, 1, 0, size)
        recipe.shape = config.shape(recipe._padded_vocab_size())
        return recipe

    def _padded_vocab_size(self) -> int:
        multiple = self.config.pad_vocab_to_multiple_of
        return -(-self.tokenizer.vocab_size // multiple) * multiple

    def check_data(self, saved: dict[str, Any]) -> None:
        if saved["tokens_sha256"] != self.fingerprint:
            raise ConfigError(
                f"config.corpus: {self.config.corpus} does not hold the tokens the checkpoint was"
                f" trained on (sha256 {self.fingerprint[:12]}, was {saved['tokens_sha256'][:12]});"
                f" restore them, or {BRANCH}"
            )

    def state(self) -> dict[str, Any]:
        return {
            "tokenizer_sha256": self.tokenizer.fingerprint,
            "tokens_sha256": self.fingerprint,
        }

    def describe(self) -> str:
        return (
            f"{self.config.corpus}: {self.num_tokens:,} tokens of {self.tokenizer.source}"
            f" (vocabulary {self.tokenizer.vocab_size:,}); read {self.about}"
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        vocab_size = self.tokenizer.vocab_size
        weights = weights | {"wte.weight": weights["wte.weight"][:vocab_size]}
        shape = replace(self.shape, vocab_size=vocab_size)
        write_gpt2(weights, shape, directory, self.tokenizer.eos_id)
        self.tokenizer.save(directory, self.config.block_size)
        self.write_golden(directory)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the samples' first tokens, without those that pad the vocabulary."""
        return super().outputs(model, batch)[..., : self.tokenizer.vocab_size]
