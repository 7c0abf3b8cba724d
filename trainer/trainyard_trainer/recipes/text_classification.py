"""text-classification: DistilBERT (Sanh et al., 2019) that classifies texts."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from trainyard_trainer.data.cache import Array, cached
from trainyard_trainer.data.rows import HUB, listed
from trainyard_trainer.data.sequences import (
    PART_ROWS,
    Part,
    cache_key,
    cached_digest,
    definition,
    tokenised,
)
from trainyard_trainer.data.texts import Texts, TextsByLength, encode_labelled
from trainyard_trainer.recipes import (
    Architecture,
    Batch,
    Changeable,
    ConfigError,
    choose_rows,
    choose_texts,
    write_golden_classes,
)
from trainyard_trainer.recipes.classification import Classification, ClassificationConfig, Split
from trainyard_trainer.recipes.hugging_face import (
    check_tokenizer,
    load_config,
    load_exported,
    load_pretrained,
    load_tokenizer,
)

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from transformers import DistilBertConfig

DISTILBERT = "distilbert/distilbert-base-uncased"
HEAD = ("pre_classifier.", "classifier.")  # weights that a pretrained DistilBERT lacks


class DistilBertShape(BaseModel):
    """The sizes of a DistilBERT with random initial weights, by the names of transformers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    n_layers: int = Field(default=6, ge=1)
    """Transformer layers."""

    n_heads: int = Field(default=12, ge=1)
    """Attention heads; must divide dim."""

    dim: int = Field(default=768, ge=1)
    """Channels of embeddings and layers."""

    hidden_dim: int = Field(default=3072, ge=1)
    """Channels inside the feed-forward part of a layer."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must divide dim ({self.dim})")
        return self


class TextClassificationConfig(ClassificationConfig):
    """Settings of text-classification. The defaults fine-tune DistilBERT on AG News."""

    dataset: str = Field(default="hub:fancyzhx/ag_news", min_length=1)
    """Training texts: hub:OWNER/NAME, a directory with train.parquet and test.parquet (or csv,
    jsonl), or such a file; parquet and jsonl may also be at s3://BUCKET/PATH or
    hf://datasets/OWNER/NAME[@REVISION]/PATH."""

    text_column: Changeable[str] = Field(default="text", min_length=1)
    """The text column."""

    model: Architecture[str] = Field(default=DISTILBERT, min_length=1)
    """The pretrained DistilBERT to start from: a Hub id or a directory."""

    from_scratch: Architecture[DistilBertShape | None] = None
    """Start from random weights instead, with these sizes."""

    tokenizer: Changeable[str | None] = Field(default=None, min_length=1)
    """Hub id or directory of the tokenizer. Default: the one of `model`."""

    max_length: int = Field(default=128, ge=4)
    """Longer texts are truncated to this many tokens."""

    dropout: Changeable[float] = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in training."""

    attention_dropout: Changeable[float] = Field(default=0.1, ge=0, lt=1)
    """Dropout probability of attention weights in training."""

    seq_classif_dropout: Changeable[float] = Field(default=0.2, ge=0, lt=1)
    """Dropout probability of the classifier's input in training."""

    num_epochs: float | None = Field(default=3, gt=0)
    learning_rate: float = Field(default=2e-5, ge=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_column == self.text_column:
            raise ValueError(f"label_column and text_column are both {self.label_column}")
        if self.from_scratch is None:
            return self
        if "model" in self.model_fields_set:
            raise ValueError("set model (pretrained) or from_scratch, not both")
        if self.tokenizer is None:
            raise ValueError("from_scratch needs a tokenizer")
        return self


class TextClassification(Classification):
    """DistilBERT with a classification head, pretrained or from scratch."""

    Config = TextClassificationConfig
    serving = "classify"
    encoded_by = ", with this tokenizer"
    config: TextClassificationConfig
    train: Texts
    held_out: Texts

    def __init__(self, config: TextClassificationConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        train, held_out = self.load(config.text_column)
        key, name = _tokenizer_of(config)
        self.tokenizer = load_tokenizer(key, name)
        if self.tokenizer.pad_token_id is None:
            raise ConfigError(
                f"config.{key}: {name} has no padding token; use DistilBERT's tokenizer"
            )
        self.model_config = self._model_config()
        self.pretrained = config.from_scratch is None
        self.tokenizer.model_max_length = config.max_length  # inference truncates as training did
        settings = definition(self.tokenizer), config.text_column, config.max_length
        self.evaluation_texts = choose_texts(self._evaluation_texts(held_out), held_out.labels)
        self.train = self._tokenise(train, settings)
        self.held_out = TextsByLength(self._tokenise(held_out, settings))
        digests = train.rows.digest, held_out.rows.digest
        self.fingerprint = cached_digest(cache_key("sha256", digests, settings), self._update)

    def _tokenise(self, split: Split, settings: object) -> Texts:
        column, max_length = self.config.text_column, self.config.max_length

        def encode(table: "pa.Table", first: int) -> Part:
            texts = texts_of(split.about(column), table[column], first)
            encoded = encode_labelled(self.tokenizer, texts, max_length)
            return Part.of((first + i, 0, tokens) for i, tokens in enumerate(encoded))

        key = cache_key("texts", split.rows.digest, settings)
        parts = tokenised(split.rows, 0, split.rows.num_rows, key, encode)
        pad_id = int(self.tokenizer.pad_token_id)
        return Texts(parts, split.labels, pad_id, max_length)

    def _evaluation_texts(self, split: Split) -> dict[int, str]:
        """Some of the held-out texts, by row; cached, as a csv or jsonl file has to be read to the
        end for them."""
        column, rows = self.config.text_column, split.rows

        def make() -> Array:
            chosen = set(choose_rows(split.labels))
            texts: dict[int, str] = {}
            for start in range(0, rows.num_rows, PART_ROWS):
                table = rows.read(start, min(start + PART_ROWS, rows.num_rows))
                found = enumerate(texts_of(split.about(column), table[column], start), start)
                texts |= {row: text for row, text in found if row in chosen}
            return np.frombuffer(json.dumps(texts).encode(), np.uint8)

        stored = cached(cache_key("evaluation", rows.digest, column), make)
        return {int(row): text for row, text in json.loads(stored.tobytes()).items()}

    def _update(self, digest: "hashlib._Hash") -> None:
        self.train.update(digest)
        self.held_out.update(digest)

    @classmethod
    def outline(cls, config: TextClassificationConfig) -> Self:
        """The data is read only for the number of classes, if `labels` isn't set."""
        recipe = cls.__new__(cls)
        recipe.config = config
        recipe.classes = config.labels or cls.read_classes(config, config.text_column)
        recipe.tokenizer = load_tokenizer(*_tokenizer_of(config))
        recipe.model_config = recipe._model_config()
        recipe.pretrained = False
        length = config.max_length
        part = Part.of([(0, 0, np.zeros(length, np.int32))])
        recipe.train = Texts([part], np.zeros(1, np.int64), 0, length)
        return recipe

    def _model_config(self) -> "DistilBertConfig":
        """The config.json of the pretrained model, or of the sizes in from_scratch."""
        from transformers import DistilBertConfig

        config = self.config
        if config.from_scratch:
            shape = config.from_scratch.model_dump()
            model_config = DistilBertConfig(
                **shape,
                vocab_size=len(self.tokenizer),
                max_position_embeddings=config.max_length,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        else:
            loaded = load_config("model", config.model)
            if not isinstance(loaded, DistilBertConfig):
                raise ConfigError(
                    f"config.model: {config.model} is a {loaded.model_type}; give a DistilBERT"
                )
            model_config = loaded
        check_tokenizer(self.tokenizer, model_config, config.max_length)
        for name in ("dropout", "attention_dropout", "seq_classif_dropout"):
            setattr(model_config, name, getattr(config, name))
        model_config.id2label = dict(enumerate(self.classes))
        model_config.label2id = {name: number for number, name in enumerate(self.classes)}
        return model_config

    def describe(self) -> str:
        mean = self.train.num_tokens / len(self.train)
        return (
            f"{self.config.dataset}: {len(self.train):,} texts to train on"
            f" ({mean:.0f} tokens on average), {len(self.held_out):,} to"
            f" evaluate on, {len(self.classes)} classes ({listed(self.classes)});"
            f" {self.about}"
        )

    def build(self) -> nn.Module:
        from transformers import DistilBertForSequenceClassification

        if not self.pretrained:
            return DistilBertForSequenceClassification(self.model_config)
        return load_pretrained(
            "model",
            self.config.model,
            DistilBertForSequenceClassification,
            fresh=HEAD,
            config=self.model_config,
        )

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return cast(Iterable[nn.Module], cast(Any, model).distilbert.transformer.layer)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(self.logits(model, batch).float(), batch["labels"])

    def epoch_file(self, epoch: int) -> str:
        """For example distilbert_ag_news-epoch-3.pt."""
        source = self.config.dataset
        if source.startswith(HUB):
            source = source.removeprefix(HUB).partition(":")[0]
        data = Path(source).stem
        return f"distilbert_{data}-epoch-{epoch}.pt"

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        from safetensors.torch import save_file

        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        self.model_config.architectures = ["DistilBertForSequenceClassification"]
        self.model_config.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        write_golden_classes(directory, self.classes, self.evaluation_texts, self.config.max_length)

    def load_exported(self, directory: Path) -> nn.Module:
        from transformers import DistilBertForSequenceClassification

        return load_exported(directory, DistilBertForSequenceClassification)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return cast(torch.Tensor, output.logits)


def _tokenizer_of(config: TextClassificationConfig) -> tuple[str, str]:
    """The setting that names the tokenizer, and its value."""
    return ("tokenizer", config.tokenizer) if config.tokenizer else ("model", config.model)


def texts_of(where: str, column: "pa.ChunkedArray", first: int) -> list[str]:
    """The column's texts, from row `first`. Raises ConfigError, beginning with `where`, if one is
    empty."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise ConfigError(f"{where} holds {column.type}, not texts; set config.text_column")
    empty = compute.equal(compute.utf8_trim_whitespace(column.fill_null("")), "")
    if compute.any(empty).as_py():
        row = first + compute.index(empty, True).as_py()
        raise ConfigError(f"{where}: row {row} is empty; remove such rows")
    texts: list[str] = column.to_pylist()
    return texts
