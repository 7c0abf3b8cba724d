"""char-gpt: a character-level GPT, trained on any text."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from trainyard_trainer.data.corpus import read_text
from trainyard_trainer.data.tokenizers import CharTokenizer
from trainyard_trainer.data.tokens import Tokens, split
from trainyard_trainer.models.gpt import write_gpt2
from trainyard_trainer.recipes import BRANCH, ConfigError
from trainyard_trainer.recipes.gpt_base import GPTConfig, GPTRecipe


class CharGPT(GPTRecipe):
    """A small GPT whose tokens are characters."""

    Config = GPTConfig

    def __init__(self, config: GPTConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        text, self.about = read_text(config.corpus)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.tokenizer = CharTokenizer(saved["characters"]) if saved else CharTokenizer.of(text)
        tokens = self.tokenizer.encode(text)
        self.num_unknown = int((tokens == 0).sum())
        where = f"config.corpus: {config.corpus}"
        # Every position starts a sample: even a small corpus has enough of them.
        self.train, self.held_out = split(
            Tokens([tokens]), config.block_size, config.eval_fraction, 1, where, "characters"
        )
        self.tokens_per_sample = config.block_size
        self.shape = config.shape(self.tokenizer.vocab_size)

    def check_data(self, saved: dict[str, Any]) -> None:
        if saved["corpus_sha256"] != self.fingerprint:
            raise ConfigError(
                f"config.corpus: {self.config.corpus} is not the text the checkpoint was trained"
                f" on (sha256 {self.fingerprint[:12]}, was {saved['corpus_sha256'][:12]});"
                f" restore that text, or {BRANCH}"
            )

    def state(self) -> dict[str, Any]:
        return {"characters": self.tokenizer.characters, "corpus_sha256": self.fingerprint}

    def describe(self) -> str:
        distinct = len(self.tokenizer.characters)
        text = f"{self.config.corpus}: {distinct} distinct characters; read {self.about}"
        if self.num_unknown:  # in more text than the checkpoint's run had
            text += f"; {self.num_unknown:,} that are not among these become <unk>"
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).tolist()
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        write_gpt2(weights, self.shape, directory)
        self.tokenizer.save(directory, self.config.block_size)
        self.write_golden(directory)
