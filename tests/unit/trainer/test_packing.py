"""Packed rows: what is in them, and that a model computes each text in them as it does alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from tests.support.trainer.ranks import ROOT
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.config import parse_config
from trainyard_trainer.data.packing import PackedSamples, pack
from trainyard_trainer.data.sequences import Part
from trainyard_trainer.data.texts import IGNORED, TokenSamples
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.causal_lm_finetune import CausalLMFinetune
from trainyard_trainer.recipes.hugging_face import check_packing, random_model

STORIES = ROOT.parent / "shared/data/models/stories260K"
NOISE = np.zeros(0, dtype=np.uint64)
WORDS = 99
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def samples(
    lengths: Sequence[int], prompts: Sequence[int] | None = None, pad_to: int | None = None
) -> TokenSamples:
    """Sequences of these lengths, whose tokens are all different from those beside them."""
    random = np.random.default_rng(1)
    parts = [
        Part.of(
            (row, prompt, random.integers(3, WORDS, length).astype(np.int32))
            for row, (length, prompt) in enumerate(zip(chosen, given, strict=True))
        )
        for chosen, given in (
            (lengths[half], (prompts or [0] * len(lengths))[half])
            for half in (slice(0, 2), slice(2, None))
        )
    ]
    return TokenSamples(parts, pad_to)


def rows_of(found: TokenSamples, max_length: int) -> PackedSamples:
    return PackedSamples(found, pack(found, max_length), max_length)


def model_of(kind: str, **settings: Any) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    return random_model(CONFIG_MAPPING[kind](**SMALL | settings), AutoModelForCausalLM)


def recipe() -> CausalLMFinetune:
    """One without data, for its loss."""
    return CausalLMFinetune.__new__(CausalLMFinetune)


def test_each_of_many_sequences_is_whole_in_one_row() -> None:
    lengths = np.random.default_rng(0).integers(2, 65, 50_000)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    none = np.zeros(len(lengths), np.int64)
    found = TokenSamples(
        [Part(np.arange(len(lengths)), starts, none, np.zeros(starts[-1], np.int32))]
    )
    rows = rows_of(found, 64)
    chosen = [rows.sequences(row) for row in range(len(rows))]
    assert sorted(np.concatenate(chosen).tolist()) == list(range(len(lengths)))
    used = [int((lengths[row] - 1).sum()) for row in chosen]
    assert max(used) <= 63
    assert rows.fill == pytest.approx(sum(used) / (63 * len(rows)))
    assert rows.fill > 0.98
    assert rows.num_targets(np.arange(len(rows))).tolist() == used
    assert rows.num_tokens == lengths.sum()
    # Neighbours are a random sample of the data, which may be sorted.
    assert np.mean([abs(row[0] - row[1]) for row in chosen if len(row) > 1]) > 10_000


def test_rows_are_those_of_checkpoints_made_before() -> None:
    lengths = [16, 3, 9, 5, 12, 4, 7, 2, 10, 6]
    rows = rows_of(samples(lengths), 16)
    chosen = [rows.sequences(row).tolist() for row in range(len(rows))]
    assert chosen == [[2, 6], [4, 3], [0], [5, 1, 8, 7], [9]]


def test_a_row_has_the_inputs_and_targets_of_each_of_its_sequences_alone() -> None:
    found = samples([9, 5, 12, 4, 7, 16], prompts=[3, 0, 1, 2, 6, 15])
    rows = rows_of(found, 16)
    ids = np.arange(len(rows))
    batch = rows.fetch(ids, NOISE)
    assert batch["ids"].shape == (len(rows), 15)
    for row in range(len(rows)):
        at = 0
        for i in rows.sequences(row):
            alone = found.fetch(np.array([i]), NOISE)
            here = slice(at, at := at + alone["ids"].shape[1])
            assert torch.equal(batch["ids"][row, here], alone["ids"][0])
            assert torch.equal(batch["targets"][row, here], alone["targets"][0])
            assert batch["positions"][row, here].tolist() == list(range(here.stop - here.start))
        assert (batch["targets"][row, at:] == IGNORED).all()
    learnt = (batch["targets"] != IGNORED).sum(1)
    assert rows.num_targets(ids).tolist() == learnt.tolist()
    padded = rows_of(samples([5, 4], pad_to=16), 16).fetch(np.array([0]), NOISE)
    assert padded["ids"].shape == (1, 15)


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = recipe().loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("kind", "settings", "checkpointing"),
    [
        ("llama", {}, False),
        ("llama", {}, True),
        ("qwen2", {}, False),
        ("gpt2", GPT2, True),
        ("mistral", {"sliding_window": 4}, False),
        ("gemma3_text", SLIDING, True),
        ("mixtral", {}, False),
    ],
)
def test_loss_and_gradients_are_those_of_the_texts_alone(
    kind: str, settings: dict[str, Any], checkpointing: bool
) -> None:
    from trainyard_trainer.distributed.parallel import _add_activation_checkpointing
    from trainyard_trainer.recipes.hugging_face import blocks_of

    model = model_of(kind, **settings)
    check_packing(model, 16)
    model.train()
    if checkpointing:
        for block in blocks_of(model):
            _add_activation_checkpointing(block)
    found = samples([9, 5, 12, 4, 7, 16, 3], prompts=[3, 0, 1, 2, 6, 9, 0])
    rows = rows_of(found, 16)
    assert len(rows) < len(found)
    apart = loss_and_gradients(model, found.fetch(np.arange(len(found)), NOISE))
    packed = loss_and_gradients(model, rows.fetch(np.arange(len(rows)), NOISE))
    assert packed[0] == pytest.approx(apart[0], abs=1e-5)
    largest = max(float(each.abs().max()) for each in apart[1])
    for one, other in zip(packed[1], apart[1], strict=True):
        assert float((one - other).abs().max()) < 1e-5 * largest


def test_a_text_does_not_see_the_others_in_its_row() -> None:
    model = model_of("llama").train()
    found = samples([9, 8, 5])
    rows = rows_of(found, 32)
    [row] = [rows.sequences(0).tolist()]
    batch = rows.fetch(np.array([0]), NOISE)
    first = len(found[row[0]]) - 1
    second = first + len(found[row[1]]) - 1

    def logits(ids: Tensor) -> Tensor:
        result: Tensor = model(ids, position_ids=batch["positions"], use_cache=False).logits[0]
        return result.detach()

    other = batch["ids"].clone()
    other[0, first:second] = torch.arange(3, 3 + second - first)
    before, after = logits(batch["ids"]), logits(other)
    assert torch.equal(before[:first], after[:first])
    assert torch.equal(before[second:], after[second:])
    assert not torch.isclose(before[first:second], after[first:second]).all(1).any()


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "does not keep the texts"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "does not keep the texts"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "does not keep the texts"),
    ],
)
def test_models_that_mix_the_texts_of_a_row_are_refused(
    kind: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^config.packing: .*{reason}.* set it to false$"):
        check_packing(model_of(kind, **settings), 64)


def test_models_that_take_no_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    whole = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, use_cache: whole(ids, use_cache=use_cache))
    with pytest.raises(ConfigError, match=r"takes no packed rows .*'position_ids'"):
        check_packing(model, 64)


needs_data = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}: a real model")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fine-tuning of 30 short texts, two held out."""
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))
    texts = ["Once upon a time there was " + "a little girl " * (n % 5) for n in range(30)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    return {
        "model": str(STORIES),
        "dataset": str(tmp_path / "rows.parquet"),
        "text_column": "text",
        "eval_samples": 2,
        "max_length": 64,
        "batch_size": 4,
    }


def load(settings: dict[str, Any], **more: Any) -> CausalLMFinetune:
    return CausalLMFinetune(parse_config(CausalLMFinetune.Config, settings | more), None)


@needs_data
def test_the_recipe_trains_on_rows_and_evaluates_as_without_them(settings: dict[str, Any]) -> None:
    plain, packed = load(settings), load(settings, packing=True)
    assert isinstance(packed.train, PackedSamples)
    count = len(packed.train)
    assert count < len(plain.train) / 2
    assert f"28 texts, {plain.train.num_tokens} tokens, packed into {count} rows, " in (
        packed.describe()
    )
    assert f"{packed.train.fill:.1%} full; 2 texts held out" in packed.describe()
    assert packed.tokens_per_sample == plain.train.num_tokens / count
    model = packed.build().eval()
    batches = [each.held_out.fetch(np.arange(2), NOISE) for each in (plain, packed)]
    sums = [packed.evaluate(model, batch).tolist() for batch in batches]
    assert sums[0] == sums[1]

    whole = [each.train.fetch(np.arange(len(each.train)), NOISE) for each in (plain, packed)]
    losses = [float(packed.loss(model, batch).detach()) for batch in whole]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    # A pretrained model would be worse at texts that see others before them.
    del whole[1]["positions"]
    assert abs(float(packed.loss(model, whole[1]).detach()) - losses[0]) > 0.01


@needs_data
def test_rows_are_found_again_and_checked(settings: dict[str, Any]) -> None:
    first, again = load(settings, packing=True), load(settings, packing=True)
    assert isinstance(first.train, PackedSamples)
    assert isinstance(again.train, PackedSamples)
    assert first.state() == again.state() != load(settings).state()
    rows = np.arange(len(first.train))
    batches = [each.train.fetch(rows, NOISE) for each in (first, again)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    with pytest.raises(ConfigError, match=re.escape("config.batch_size: 16 packed rows make a st")):
        load(settings, packing=True, batch_size=16)
