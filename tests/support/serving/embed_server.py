"""Tiny embedding models, with the files of Sentence Transformers, and their server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from tests.patience import until
from tests.support.serving.servers import running
from trainyard_serving.embed.app import create_embed_app
from trainyard_serving.embed.settings import EmbedSettings

WORDS = [f"word{number}" for number in range(200)]
CONTEXT, SIZE = 32, 24
CONFIG: dict[str, Any] = {
    "hidden_size": SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,  # untrained, but with distinct embeddings
}


def write_tokenizer(directory: Path, model_max_length: int | None = CONTEXT) -> int:
    """Words, with [CLS] and [SEP] around a text; returns the size of the vocabulary."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    fast: Any = PreTrainedTokenizerFast
    fast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **limit,
    ).save_pretrained(directory)
    return len(vocabulary)


def write_encoder(directory: Path, seed: int = 0, **config: Any) -> None:
    """An untrained BERT without anything of Sentence Transformers."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(directory)
    torch.manual_seed(seed)
    settings = CONFIG | {"max_position_embeddings": CONTEXT} | config
    BertModel(BertConfig(vocab_size=size, **settings)).save_pretrained(directory)


def write_roberta(directory: Path) -> None:
    """As CONTEXT tokens need: two positions more, because they are counted from the padding's."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(directory, model_max_length=None)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=size, max_position_embeddings=CONTEXT + 1, pad_token_id=0, **CONFIG
    )
    RobertaModel(config).save_pretrained(directory)


def write_pooling(directory: Path, mode: str, normalize: bool = False, **config: Any) -> None:
    """modules.json and 1_Pooling/config.json, with the flags of older versions."""
    (directory / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", mode)}
    pooling = {"word_embedding_dimension": SIZE, **flags, "include_prompt": True, **config}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    names = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    write_modules(directory, names)


def write_modules(directory: Path, names: list[str]) -> None:
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))


@contextmanager
def embed_server(**settings: Any) -> Iterator[httpx.Client]:
    """A server whose model is loaded."""
    values: dict[str, Any] = {"threads": 1, "poll_seconds": 0.05, **settings}
    values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
    with running(create_embed_app(EmbedSettings(**values))) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client
