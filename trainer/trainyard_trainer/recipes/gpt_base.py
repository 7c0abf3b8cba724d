"""What the GPT recipes share: the model's settings, its loss and its samples."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainyard_trainer.data.tokens import Windows
from trainyard_trainer.models.gpt import GPT, GPTShape, read_gpt2
from trainyard_trainer.recipes import (
    COMPARED_TOKENS,
    LOSS,
    Architecture,
    Batch,
    Changeable,
    Recipe,
    TrainConfig,
    prompt_tokens,
    write_golden_text,
)


class GPTConfig(TrainConfig):
    """Settings of a GPT and of its training text."""

    corpus: Changeable[str] = Field(default="stdlib", min_length=1)
    """stdlib, a text file, a directory of text files (DIR/**/*.txt and other globs read the folders
    in it, too), or hub:OWNER/NAME[:COLUMN]."""

    eval_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Fraction of the text, at its end, that is held out for evaluation."""

    block_size: Architecture[int] = Field(default=128, ge=2)
    """Context length in tokens."""

    n_layer: Architecture[int] = Field(default=4, ge=1)
    """Transformer layers."""

    n_head: Architecture[int] = Field(default=4, ge=1)
    """Attention heads; must divide n_embd."""

    n_embd: Architecture[int] = Field(default=128, ge=1)
    """Channels of the residual stream."""

    dropout: Changeable[float] = Field(default=0.0, ge=0, lt=1)
    """Dropout probability in training."""

    sample_tokens: Changeable[int] = Field(default=240, ge=1)
    """Tokens to generate for each sample."""

    prompt: Changeable[str] = Field(default="\n", min_length=1)
    """Prompt of the samples."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head ({self.n_head}) must divide n_embd ({self.n_embd})")
        return self

    def shape(self, vocab_size: int) -> GPTShape:
        """The model's sizes."""
        return GPTShape(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
        )


class GPTRecipe(Recipe):
    """Base of the GPT recipes; a subclass defines the tokens and sets these attributes."""

    config: GPTConfig
    serving = "generate"
    shape: GPTShape
    train: Windows
    held_out: Windows

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""

    def build(self) -> nn.Module:
        return GPT(self.shape)

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return cast(GPT, model).h

    def parts(self, model: nn.Module) -> dict[str, tuple[object, str]]:
        return {
            "the embedding": (model, "embed"),
            "the final norm": (model.ln_f, "forward"),
            LOSS: (model, "chunk_loss"),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats per token."""
        loss: Tensor = model(batch["ids"], batch["targets"])
        return loss

    def load_exported(self, directory: Path) -> nn.Module:
        return read_gpt2(directory)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the samples' first tokens."""
        logits: Tensor = model(batch["ids"][:, :COMPARED_TOKENS])
        return logits

    def write_golden(self, directory: Path) -> None:
        """Write the exported model's continuation of the held-out text's start to golden.json."""
        model = self.load_exported(directory)
        prompt_ids = self.held_out[0][: prompt_tokens(self.config.block_size)]
        prompt = self.decode(prompt_ids.tolist())
        # A text that is cut may have other tokens than as part of the longer one.
        ids = self.encode(prompt)
        write_golden_text(directory, prompt, ids, self.config.block_size, model)

    def sample(self, model: nn.Module, step: int) -> str:
        device = next(model.parameters()).device
        prompt = torch.tensor([self.encode(self.config.prompt)], device=device)
        generator = torch.Generator().manual_seed(step)
        ids = cast(GPT, model).generate(prompt, self.config.sample_tokens, generator)
        return self.decode(ids[0].tolist())
