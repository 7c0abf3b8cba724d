"""Exported models for tests: a tiny untrained character GPT, and the manifest of a run."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a tiny model on two cores: threads only wait

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainyard_api.checkpoint import MANIFEST, Manifest
from trainyard_storage.checkpoints import describe_files, manifest_bytes

ALPHABET = "\n !',.?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZé日🚂"
CONTEXT = 32


def write_manifest(directory: Path, **changes: Any) -> None:
    """Publish `directory` as the model of a run."""
    fields: dict[str, Any] = {
        "kind": "model",
        "run": "shakespeare",
        "attempt": 1,
        "recipe": "char-gpt",
        "step": 500,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "files": describe_files(directory),
    }
    manifest = Manifest(**(fields | changes))
    (directory / MANIFEST).write_bytes(manifest_bytes(manifest))


def export_char_gpt(directory: Path, eos_token_id: int | None = None, seed: int = 7) -> None:
    """An untrained character GPT in the form a run exports: GPT-2 and a fast tokenizer."""
    tokenizer = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(["<unk>", *ALPHABET])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=CONTEXT).save_pretrained(
        directory
    )
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=80,  # padded beyond the tokenizer's, as trainers do
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        initializer_range=0.3,  # untrained, but with distinct logits
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
