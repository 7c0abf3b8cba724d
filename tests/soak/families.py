"""The recipe families, each with data made here and a model so small that a run takes a second."""

import argparse
import inspect
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Settings = dict[str, Any]

# Twelve steps, with dropout wherever the model has it.
COMMON: Settings = {
    "max_steps": 12,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "eval_steps": 4,
    "eval_batches": 2,
    "log_steps": 1,
}
SAVE_STEPS = 3


@dataclass(frozen=True)
class Family:
    """One recipe.

    Attributes:
        settings: its config beside COMMON; makes the data in the folder it is given.
        imports: modules that every run would import by itself, for the rank server.
    """

    recipe: str
    settings: Callable[[Path], Settings]
    imports: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.recipe.replace("-", "_")


def text() -> str:
    """20,000 characters."""
    return inspect.getsource(argparse)[:20_000]


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 300 tokens in Hugging Face form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {name: f"<{name}>" for name in ("eos_token", "pad_token", "cls_token", "sep_token")}
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_table(path: Path, **columns: list[Any]) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


def char_gpt(folder: Path) -> Settings:
    corpus = folder / "corpus.txt"
    corpus.write_text(text())
    return {
        "corpus": str(corpus),
        "block_size": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "dropout": 0.1,
        "sample_tokens": 20,
    }


def gpt(folder: Path) -> Settings:
    write_tokenizer(folder)
    return char_gpt(folder) | {"tokenizer": str(folder), "gradient_accumulation_steps": 2}


def causal_lm_finetune(folder: Path) -> Settings:
    write_tokenizer(folder)
    lines = [line for line in text().splitlines() if line.strip()]
    write_table(folder / "train.parquet", abstract=lines[:68])
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "attention_dropout": 0.1,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return {
        "model": str(folder),
        "from_scratch": True,
        "dataset": str(folder / "train.parquet"),
        "eval_samples": 8,
        "max_length": 32,
        "sample_tokens": 5,
        "gradient_accumulation_steps": 2,
    }


def text_classification(folder: Path) -> Settings:
    write_tokenizer(folder)
    lines = [line for line in text().splitlines() if line.strip()]
    labels = [len(line) % 4 for line in lines]
    write_table(folder / "train.parquet", text=lines[:60], label=labels[:60])
    write_table(folder / "test.parquet", text=lines[60:80], label=labels[60:80])
    return {
        "dataset": str(folder),
        "labels": ["World", "Sports", "Business", "Sci/Tech"],
        "tokenizer": str(folder),
        "from_scratch": {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64},
        "max_length": 32,
    }


def image_classification(folder: Path) -> Settings:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    encoded = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "png")
        encoded.append({"bytes": file.getvalue(), "path": None})
    labels = [int(each.sum()) % 3 for each in pixels]
    write_table(folder / "train.parquet", img=encoded[:60], label=labels[:60])
    write_table(folder / "test.parquet", img=encoded[60:], label=labels[60:])
    return {
        "dataset": str(folder),
        "labels": ["aeroplane", "car", "bird"],
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "cutout_size": 4,
    }


_TRANSFORMERS = ("transformers.models.auto.modeling_auto", "pyarrow.parquet")

FAMILIES = {
    family.recipe: family
    for family in (
        Family("char-gpt", char_gpt),
        Family("gpt", gpt, ("tokenizers",)),
        Family(
            "causal-lm-finetune",
            causal_lm_finetune,
            (*_TRANSFORMERS, "transformers.models.qwen2.modeling_qwen2"),
        ),
        Family(
            "text-classification",
            text_classification,
            (*_TRANSFORMERS, "transformers.models.distilbert.modeling_distilbert"),
        ),
        Family("image-classification", image_classification, ("PIL.Image", "pyarrow.parquet")),
    )
}
