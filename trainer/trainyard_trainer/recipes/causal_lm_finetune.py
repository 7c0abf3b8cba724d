"""causal-lm-finetune: fine-tune a causal language model of the Hub, or of a directory."""

import hashlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from trainyard_trainer.data.packing import PackedSamples, pack, packed
from trainyard_trainer.data.rows import Rows
from trainyard_trainer.data.sequences import Part, cache_key, cached_digest, definition, tokenised
from trainyard_trainer.data.texts import IGNORED, TokenSamples, encode
from trainyard_trainer.recipes import (
    BRANCH,
    COMPARED_TOKENS,
    Architecture,
    Batch,
    Changeable,
    ConfigError,
    Ids,
    Recipe,
    TrainConfig,
    Weights,
    prompt_tokens,
    write_golden_text,
)
from trainyard_trainer.recipes.hugging_face import (
    assign_weights,
    blocks_of,
    check_context,
    check_packing,
    check_tokenizer,
    empty_model,
    load_config,
    load_exported,
    load_pretrained,
    load_tokenizer,
    random_model,
    sample_continuation,
    upload_model,
)
from trainyard_trainer.recipes.lora import LoraSettings, add_lora, merged, untie

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

SAMPLE_PROMPT_TOKENS = 16  # of a held-out text, which samples continue


class Slice(BaseModel):
    """The `slice` setting: rows start, start + 1, ..., end - 1."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    start: int = Field(default=0, ge=0)
    """First row, counted from 0."""

    end: int = Field(ge=1)
    """The row after the last one."""

    @model_validator(mode="after")
    def _in_order(self) -> "Slice":
        if self.start >= self.end:
            raise ValueError(f"start ({self.start}) must be less than end ({self.end})")
        return self


class CausalLMFinetuneConfig(TrainConfig):
    """Settings of causal-lm-finetune."""

    model: Architecture[str] = Field(default="Qwen/Qwen2-0.5B-Instruct", min_length=1)
    """The model to start from: a Hub id, or a directory with config.json and safetensors."""

    from_scratch: bool = False
    """Start from random weights: of `model` only config.json (and the tokenizer) is used."""

    tokenizer: str | None = Field(default=None, min_length=1)
    """Hub id or directory of the tokenizer. Default: the one of `model`."""

    dataset: Changeable[str] = Field(default="hub:CShorten/ML-ArXiv-Papers", min_length=1)
    """hub:OWNER/NAME, a parquet, csv or jsonl file, or a directory with SPLIT.parquet; parquet
    and jsonl may also be at s3://BUCKET/PATH or hf://datasets/OWNER/NAME[@REVISION]/PATH."""

    split: str = Field(default="train", min_length=1)
    """Which split of the data set."""

    text_column: str = Field(default="abstract", min_length=1)
    """The text column."""

    prompt: str | None = None
    """A prompt before each text, with columns in braces: for example "Write the abstract of a paper
    titled {title}." Its tokens are not in the loss. If the tokenizer has a chat template, the
    prompt is the user's message and the text the answer. Default: the texts alone."""

    slice: Slice | None = None
    """Rows to train on, {start, end}. Default: all but the held-out ones."""

    eval_samples: int = Field(default=500, ge=1)
    """Rows held out: always the last of the data set, so that runs on different slices can be
    compared."""

    max_length: int = Field(default=512, ge=2)
    """Longer samples are truncated to this many tokens."""

    packing: bool = False
    """Train on rows of several texts, each row at most max_length tokens, instead of padding. A row
    holds whole texts, which do not see each other: positions and attention are those of each alone,
    and so is the loss of each token. `batch_size` counts rows. A model that can't keep the texts of
    a row apart is refused."""

    lora: Architecture[LoraSettings | None] = None
    """Train a low-rank adapter only: {r, alpha, dropout, target_modules}, or {}."""

    sample_tokens: Changeable[int] = Field(default=48, ge=1)
    """Tokens to generate for each sample."""

    checkpoint_prefix: Changeable[str | None] = Field(default=None, pattern=r"^[\w.-]+$")
    """PREFIX of the file written after each epoch, epochs/PREFIX_{start}-{end}-epoch-{n}.pt.
    Default: the model's name, qwen2_0.5B for Qwen/Qwen2-0.5B-Instruct."""

    hub_model_id: Changeable[str | None] = Field(default=None, min_length=1)
    """Upload the finished model to OWNER/NAME on the Hub, with the token in HF_TOKEN."""

    hub_private_repo: Changeable[bool] = True
    """Whether a repository created for it is private."""

    num_epochs: float | None = Field(default=3, gt=0)
    batch_size: int = Field(default=16, ge=1)
    """Samples per optimizer step, over all ranks and accumulation steps; with `packing`, rows of
    several samples."""

    learning_rate: float = Field(default=2e-5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    eval_on_start: bool = True
    eval_steps: int = Field(default=0, ge=0)
    eval_batches: int | None = Field(default=None, ge=1)

    @field_validator("prompt")
    @classmethod
    def _check_placeholders(cls, prompt: str | None) -> str | None:
        if prompt is not None and not all(name.isidentifier() for name in columns_in(prompt)):
            raise ValueError("write columns in braces, {title}, and double a literal brace")
        return prompt


class CausalLMFinetune(Recipe):
    """A pretrained causal language model and the texts of a data set."""

    Config = CausalLMFinetuneConfig
    serving = "generate"

    train: TokenSamples | PackedSamples
    held_out: TokenSamples
    outlined = False  # whether it's for an estimate, whose model may have no values

    def __init__(self, config: CausalLMFinetuneConfig, saved: dict[str, Any] | None) -> None:
        self.config = config
        key = "tokenizer" if config.tokenizer else "model"
        self.tokenizer = load_tokenizer(key, config.tokenizer or config.model)
        self.model_config = load_config("model", config.model)
        check_tokenizer(self.tokenizer, self.model_config, config.max_length)
        columns = [config.text_column, *columns_in(config.prompt or "")]
        rows = Rows("dataset", config.dataset, config.split, columns)
        self.about = rows.about
        kind = str(rows.schema.field(config.text_column).type)
        if kind not in ("string", "large_string"):
            raise ConfigError(f"config.text_column: {config.text_column} holds {kind}, not text")
        self.slice = self._check_slice(rows.num_rows)
        start, end = self.slice.start, self.slice.end
        settings = config.text_column, config.prompt, config.max_length
        key = cache_key("texts", rows.digest, definition(self.tokenizer), settings)
        self.num_skipped = 0
        texts = self._samples(rows, key, start, end, "in the slice")
        self.num_texts = len(texts)
        self.train = texts
        if config.packing:
            name = f"{key}/rows-{start}-{end}"
            self.train = packed(texts, config.max_length, config.batch_size, name)
        first_held_out = rows.num_rows - config.eval_samples
        self.held_out = self._samples(rows, key, first_held_out, rows.num_rows, "held out")
        self.tokens_per_sample = self.train.num_tokens / len(self.train)
        name = f"{key}/sha256-{start}-{end}-{first_held_out}" + "-packed" * config.packing
        self.fingerprint = cached_digest(name, self._update)

    @classmethod
    def outline(cls, config: CausalLMFinetuneConfig) -> Self:
        """Of the model only config.json is read."""
        recipe = cls.__new__(cls)
        recipe.config = config.model_copy(update={"from_scratch": True})
        recipe.model_config = load_config("model", config.model)
        check_context(recipe.model_config, config.max_length)
        recipe.outlined = True
        length = config.max_length
        texts = TokenSamples([Part.of([(0, 0, np.zeros(length, np.int32))])])
        rows = PackedSamples(texts, pack(texts, length), length)
        recipe.train = rows if config.packing else texts
        return recipe

    def check_data(self, saved: dict[str, Any]) -> None:
        if saved["texts_sha256"] != self.fingerprint:
            raise ConfigError(
                f"config.dataset: the texts of {self.config.dataset} are not those the checkpoint"
                f" was trained on; restore them, or {BRANCH}"
            )

    def _check_slice(self, num_rows: int) -> Slice:
        available = num_rows - self.config.eval_samples
        if available < 1:
            raise ConfigError(
                f"config.eval_samples: {self.config.eval_samples:,} rows are held out, but"
                f" {self.config.dataset} has only {num_rows:,}; lower it"
            )
        chosen = self.config.slice or Slice(end=available)
        if chosen.end > available:
            raise ConfigError(
                f"config.slice: rows {chosen.start} to {chosen.end} of {self.config.dataset}, which"
                f" has {num_rows:,} and the last {self.config.eval_samples:,} held out"
                f" (eval_samples): end can be at most {available}"
            )
        return chosen

    def _samples(self, rows: Rows, key: str, start: int, end: int, which: str) -> TokenSamples:
        """The samples of these rows; those without a text, or without room for one, are skipped."""
        config = self.config
        parts = tokenised(rows, start, end, key, self._encode)
        # torch.compile specialises on lengths: one for all batches.
        samples = TokenSamples(parts, pad_to=config.max_length if config.compile else None)
        if len(samples) == 0:
            if not any(self._text(row) for row in rows.read(start, end).to_pylist()):
                raise ConfigError(
                    f"config.text_column: every {config.text_column} {which} is empty"
                )
            raise ConfigError(
                f"config.max_length: {config.max_length} tokens leave no room for any text"
                f" {which} after its prompt; raise it, or shorten the prompt"
            )
        self.num_skipped += end - start - len(samples)
        return samples

    def _text(self, row: dict[str, Any]) -> str:
        """The text of a row; "" if there is none, or only white space."""
        text: str = row[self.config.text_column] or ""
        return text if text.strip() else ""

    def _encode(self, table: "pa.Table", first: int) -> Part:
        config = self.config
        rows = {first + i: row for i, row in enumerate(table.to_pylist()) if self._text(row)}
        texts = [self._text(row) for row in rows.values()]
        prompts = [config.prompt.format(**row) for row in rows.values()] if config.prompt else None
        encoded = encode(self.tokenizer, texts, prompts, config.max_length)
        return Part.of(
            (row, num_prompt, tokens)
            for row, (tokens, num_prompt) in zip(rows, encoded, strict=True)
            if len(tokens) > max(1, num_prompt)
        )

    def _update(self, digest: "hashlib._Hash") -> None:
        for samples in (self.train, self.held_out):
            samples.update(digest)

    def state(self) -> dict[str, Any]:
        return {"texts_sha256": self.fingerprint}

    def describe(self) -> str:
        start, end = self.slice.start, self.slice.end
        text = (
            f"{self.config.dataset}, rows {start} to {end}: {self.num_texts:,} texts,"
            f" {self.train.num_tokens:,} tokens"
        )
        if isinstance(self.train, PackedSamples):
            text += f", packed into {len(self.train):,} rows, {self.train.fill:.1%} full"
        text += f"; {len(self.held_out):,} texts held out"
        if self.num_skipped:
            text += f"; {self.num_skipped:,} skipped (no text, or no room after the prompt)"
        return f"{text}; read {self.about}"

    def build(self) -> nn.Module:
        from transformers import AutoModelForCausalLM as Auto

        if self.config.from_scratch:
            model = random_model(self.model_config, Auto)
        else:
            model = load_pretrained("model", self.config.model, Auto)
        self.generation_config = model.generation_config
        if self.config.lora:
            add_lora(model, self.config.lora)
        if self.config.packing and not self.outlined:
            check_packing(model, self.config.max_length)
        return model

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return blocks_of(model)

    def weights(self, ids: Ids) -> Weights:
        """Target tokens: the loss is the mean over all of them in the global batch."""
        return self.train.num_targets(ids)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats per target token."""
        return self._loss(model, batch, "mean")

    def _loss(self, model: nn.Module, batch: Batch, reduction: str) -> Tensor:
        # Without an attention mask, positions that begin again tell transformers where texts begin.
        positions = {"position_ids": batch["positions"]} if "positions" in batch else {}
        logits = model(batch["ids"], **positions, use_cache=False).logits.float()
        targets = batch["targets"]
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss summed over target tokens, and their number."""
        loss = self._loss(model, batch, "sum")
        return torch.stack([loss, (batch["targets"] != IGNORED).sum()])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        loss = sums[0] / sums[1]
        return {"eval_loss": loss, "perplexity": math.exp(min(loss, 700))}  # e^710 overflows

    def sample(self, model: nn.Module, step: int) -> str:
        """The model's continuation of the first held-out text's prompt, or of its first tokens."""
        ids, num_prompt = self.held_out[0], self.held_out.num_prompt(0)
        prompt = ids[: num_prompt if self.config.prompt else SAMPLE_PROMPT_TOKENS].tolist()
        generator = torch.Generator().manual_seed(step)
        sampled = sample_continuation(model, prompt, self.config.sample_tokens, generator)
        end = self.tokenizer.eos_token_id
        sampled = sampled[: sampled.index(end)] if end in sampled else sampled
        text = self.tokenizer.decode(prompt + sampled, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def epoch_file(self, epoch: int) -> str:
        prefix = self.config.checkpoint_prefix or short_name(self.config.model)
        return f"{prefix}_{self.slice.start}-{self.slice.end}-epoch-{epoch}.pt"

    def export(self, weights: dict[str, Tensor], directory: Path) -> None:
        """The model (with LoRA: merged, and the adapter in adapter/) and its tokenizer."""
        from transformers import AutoModelForCausalLM as Auto

        if lora := self.config.lora:
            model = empty_model(untie(self.model_config, weights), Auto)
            model = merged(model, lora, weights, self.config.model, directory / "adapter")
        else:
            model = empty_model(self.model_config, Auto)
            assign_weights(model, weights)
        model.generation_config = self.generation_config
        model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        self._write_golden(directory)

    def load_exported(self, directory: Path) -> nn.Module:
        from transformers import AutoModelForCausalLM as Auto

        return load_exported(directory, Auto)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the samples' first tokens."""
        logits: Tensor = model(batch["ids"][:, :COMPARED_TOKENS], use_cache=False).logits
        return logits

    def _write_golden(self, directory: Path) -> None:
        """Write the exported model's continuation of the first held-out text to golden.json."""
        model = self.load_exported(directory)
        context = getattr(self.model_config, "max_position_embeddings", None) or sys.maxsize
        prompt_ids = self.held_out[0][: prompt_tokens(context)].tolist()
        prompt = str(self.tokenizer.decode(prompt_ids, skip_special_tokens=True))
        ids = list(self.tokenizer(prompt)["input_ids"])

        def logits(ids: Tensor) -> Tensor:
            result: Tensor = model(ids, use_cache=False).logits
            return result

        write_golden_text(directory, prompt, ids, context, logits)

    def upload(self, directory: Path) -> str | None:
        if self.config.hub_model_id is None:
            return None
        url = upload_model(directory, self.config.hub_model_id, self.config.hub_private_repo)
        return f"model uploaded to {url}"


def columns_in(prompt: str) -> list[str]:
    """The names in braces."""
    return [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]


def short_name(model: str) -> str:
    """qwen2_0.5B for Qwen/Qwen2-0.5B-Instruct: the family in lower case, then the size."""
    family, *rest = Path(model).name.removesuffix("-Instruct").split("-")
    return "_".join([family.lower(), *rest])
