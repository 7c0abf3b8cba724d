"""Texts written together are the texts written alone, whoever joins and leaves beside them."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from trainyard_serving.generate import batch as batch_module
from trainyard_serving.generate.batch import Batch
from trainyard_serving.generate.batchable import obstacle
from trainyard_serving.generate.completion import Sampling
from trainyard_serving.generate.padded_cache import PaddedCache
from trainyard_serving.generate.sampling import Sampler
from trainyard_serving.generate.sequence import Sequence
from trainyard_serving.generate.text_stream import Detokenizer
from trainyard_serving.generate.token_model import TokenModel

CONTEXT, VOCABULARY, EOS = 24, 60, 7
CPU = torch.device("cpu")
ROPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # untrained, but with strong opinions
    "bos_token_id": None,
    "eos_token_id": None,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": CONTEXT // 2,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}
SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=32, initializer_range=0.3, **SMALL
    ),
    "qwen2": Qwen2Config(**ROPE),
    "sliding window": MistralConfig(sliding_window=8, **ROPE),
    "alibi": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, **SMALL),
    "longrope": LlamaConfig(rope_parameters=LONGROPE, **ROPE),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> TokenModel:
    torch.manual_seed(3)
    auto: Any = AutoModelForCausalLM
    module = auto.from_config(CONFIGS[name]).to(dtype).train(False)
    return TokenModel(module, CPU, CONTEXT, num_tokens=VOCABULARY - 2, never=5)


def decode(ids: list[int]) -> str:
    return "".join(chr(ord("A") + token) for token in ids)


def begin(prompt: list[int], sampling: Sampling) -> Sequence:
    detokenizer = Detokenizer(decode, prompt)
    sampler = Sampler(sampling, CPU)
    return Sequence(0, prompt, sampling, sampler, detokenizer, frozenset({EOS}), CONTEXT)


class Told:
    """What sequences have said."""

    def __init__(self) -> None:
        self.texts: dict[Sequence, str] = {}
        self.ended: set[Sequence] = set()
        self.failed: dict[Sequence, Exception] = {}

    def hear(self, news: batch_module.News) -> None:
        for sequence, said in news:
            if isinstance(said, Exception):
                self.failed[sequence] = said
                continue
            self.texts[sequence] = self.texts.get(sequence, "") + said.text
            if said.finish_reason:
                self.ended.add(sequence)


def alone(model: TokenModel, prompt: list[int], sampling: Sampling) -> str:
    batch, told = Batch(model, 1), Told()
    sequence = begin(prompt, sampling)
    batch.add(sequence)
    while batch.sequences:
        told.hear(batch.read())
        told.hear(batch.write())
    assert not told.failed
    return told.texts[sequence]


@cache
def pool(name: str) -> tuple[TokenModel, list[tuple[list[int], Sampling, str]]]:
    """Prompts, how to go on from them, and their texts alone; most slide past the context.

    In 64 bits rounding decides no token, so that the texts must be the same on every machine.
    """
    model = make(name, torch.float64)
    rng = random.Random(11)
    asked = []
    for number in range(8):
        prompt = [rng.randrange(VOCABULARY - 2) for _ in range(rng.choice([1, 5, 13, CONTEXT]))]
        how: dict[str, Any] = {"temperature": 0} if number % 2 else {"seed": number, "top_p": 0.9}
        sampling = Sampling(max_tokens=rng.choice([1, 9, 28, 28]), **how)
        asked.append((prompt, sampling, alone(model, prompt, sampling)))
    return model, asked


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_in_any_company_each_text_is_the_one_written_alone(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch_module.PIECE, "cpu", 5)
    model, asked = pool(name)
    rng = random.Random(seed)
    batch, told = Batch(model, rng.randint(2, 6)), Told()
    waiting = [(begin(prompt, sampling), text) for prompt, sampling, text in asked]
    rng.shuffle(waiting)
    expected: dict[Sequence, str] = dict(waiting)
    dropped = set()
    together = 0
    while waiting or batch.sequences:
        if waiting and not batch.full and rng.random() < 0.8:
            batch.add(waiting.pop()[0])
        if batch.sequences and rng.random() < 0.02:
            gone = {rng.choice(batch.sequences)}
            batch.drop(gone)
            dropped |= gone
        if rng.random() < 0.8:
            told.hear(batch.read())
        together = max(together, batch.num_writing)
        told.hear(batch.write())
        check_bounds(batch)
    assert together > 1  # there was company
    assert told.failed == {}
    assert told.ended == expected.keys() - dropped
    for sequence, text in told.texts.items():
        assert text == expected[sequence] or sequence in dropped
        assert expected[sequence].startswith(text)


def test_a_long_prompt_is_read_between_the_tokens_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(batch_module.PIECE, "cpu", 5)
    batch, told = Batch(make("gpt2"), 4), Told()
    writing, long, short = (
        begin([1] * n, Sampling(max_tokens=20, seed=1)) for n in (1, CONTEXT, 2)
    )
    batch.add(writing)
    told.hear(batch.read())
    batch.add(long)
    batch.add(short)
    lengths: dict[Sequence, int] = {}
    while long not in told.texts:
        told.hear(batch.read())
        told.hear(batch.write())
        lengths |= {one: len(told.texts[writing]) for one in told.texts if one not in lengths}
    # Five pieces, the short prompt after the first of them, and a token for `writing` every time.
    assert lengths[short] == 3
    assert lengths[long] == 7


def check_bounds(batch: Batch) -> None:
    """A row per sequence, no wider than the context, and no column that is padding in all."""
    padding = batch._cache.padding
    assert len(padding) == batch.num_writing
    if padding:
        assert min(padding) == 0
        layers: list[Any] = batch._cache.cache.layers
        for layer in layers:
            assert layer.keys.shape[0] == len(padding)
            assert layer.keys.shape[2] <= CONTEXT
            assert max(padding) < layer.keys.shape[2]
            # Not a view of something larger, which would keep what has left in memory.
            assert layer.keys.untyped_storage().nbytes() == layer.keys.nbytes


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_in_32_bits_logits_beside_others_differ_by_rounding_only(name: str) -> None:
    model = make(name)
    prompts = [[1] * 20, [2, 3], [4, 6, 8, 10, 12, 14, 16]]
    caches = [model.new_cache() for _ in prompts]
    apart = [model.logits([p], c)[0] for p, c in zip(prompts, caches, strict=True)]
    tokens = [[int(logits.argmax())] for logits in apart]
    together = PaddedCache()
    for prompt in prompts:
        joining = model.new_cache()
        model.logits([prompt], joining)
        together.join(joining)
    assert together.padding == [0, 18, 13]
    got = model.logits(tokens, together.cache, together.padding)
    wanted = torch.cat([model.logits([t], c) for t, c in zip(tokens, caches, strict=True)])
    assert float((got - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


class Failing(Sampler):
    """Gives up at its third token, as a sampler does that is given NaN."""

    def __init__(self) -> None:
        super().__init__(Sampling(seed=1), CPU)
        self._left = 3

    def pick(self, logits: Tensor) -> int:
        self._left -= 1
        if not self._left:
            raise RuntimeError("probability tensor contains nan")
        return super().pick(logits)


def test_a_text_that_fails_leaves_the_others_as_they_were() -> None:
    model, asked = pool("gpt2")
    batch, told = Batch(model, 4), Told()
    good = {begin(prompt, sampling): text for prompt, sampling, text in asked[:3]}
    bad = Sequence(
        0, [1], Sampling(max_tokens=99), Failing(), Detokenizer(decode, [1]), frozenset(), CONTEXT
    )
    unreadable = begin([VOCABULARY + 1], Sampling())  # no such token
    first, *others = good
    for sequence in (first, bad, unreadable, *others):
        batch.add(sequence)
    while batch.sequences:
        told.hear(batch.read())
        told.hear(batch.write())
    assert told.failed.keys() == {bad, unreadable}
    assert {sequence: told.texts[sequence] for sequence in good} == good


class Careless(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """Takes a mask and forgets it."""

    def forward(
        self, *args: Any, attention_mask: Any = None, position_ids: Any = None, **more: Any
    ) -> Any:
        return super().forward(*args, position_ids=position_ids, **more)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sliding window", "DynamicSlidingWindowLayer"),
        ("alibi", "it takes no position_ids"),
        ("longrope", "longrope"),
    ],
)
def test_models_that_cannot_be_batched_are_known_by_their_class(name: str, why: str) -> None:
    found = obstacle(make(name))
    assert found is not None
    assert why in found


def test_a_model_that_only_seems_to_take_padding_is_found_by_trial() -> None:
    careless = TokenModel(Careless(CONFIGS["gpt2"]).train(False), CPU, CONTEXT, VOCABULARY)
    found = obstacle(careless)
    assert found is not None
    assert "off by" in found
    assert obstacle(make("gpt2")) is None
    assert obstacle(make("qwen2", torch.bfloat16)) is None
