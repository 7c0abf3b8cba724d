"""A text does not depend on the texts in its batch, whichever join and leave."""

import random
from functools import cache
from itertools import count
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
from trainyard_serving.generate.engine import SamplingOptions
from trainyard_serving.generate.sampling import Sampler
from trainyard_serving.generate.sequence import Detokenizer, TextSequence
from trainyard_serving.generate.token_model import PaddedCache, TokenModel, why_not_batchable

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
    "initializer_range": 0.3,  # untrained, but with distinct logits
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
    return TokenModel(module, CPU, CONTEXT, num_tokens=VOCABULARY - 2, excluded=5)


def decode(ids: list[int]) -> str:
    return "".join(chr(ord("A") + token) for token in ids)


def new_sequence(prompt: list[int], sampling: SamplingOptions) -> TextSequence:
    detokenizer = Detokenizer(decode, prompt)
    sampler = Sampler(sampling, CPU, prompt, {EOS})
    return TextSequence(0, prompt, sampling, sampler, detokenizer, frozenset({EOS}), CONTEXT)


class Collected:
    """The results of a batch so far."""

    def __init__(self) -> None:
        self.texts: dict[TextSequence, str] = {}
        self.ended: set[TextSequence] = set()
        self.failed: dict[TextSequence, Exception] = {}

    def add(self, results: batch_module.Results) -> None:
        for sequence, result in results:
            if isinstance(result, Exception):
                self.failed[sequence] = result
                continue
            self.texts[sequence] = self.texts.get(sequence, "") + result.text
            if result.finish_reason:
                self.ended.add(sequence)


def alone(model: TokenModel, prompt: list[int], sampling: SamplingOptions) -> str:
    batch, collected = Batch(model, 1), Collected()
    sequence = new_sequence(prompt, sampling)
    batch.add(sequence)
    while batch.sequences:
        collected.add(batch.prefill())
        collected.add(batch.decode())
    assert not collected.failed
    return collected.texts[sequence]


@cache
def pool(name: str) -> tuple[TokenModel, list[tuple[list[int], SamplingOptions, str]]]:
    """Prompts, options and the texts generated alone; most exceed the context.

    In 64 bits rounding decides no token, so that the texts must be the same on every machine.
    """
    model = make(name, torch.float64)
    rng = random.Random(11)
    cases = []
    for number in range(8):
        prompt = [rng.randrange(VOCABULARY - 2) for _ in range(rng.choice([1, 5, 13, CONTEXT]))]
        how: dict[str, Any] = {"temperature": 0} if number % 2 else {"seed": number, "top_p": 0.9}
        sampling = SamplingOptions(max_tokens=rng.choice([1, 9, 28, 28]), **how)
        cases.append((prompt, sampling, alone(model, prompt, sampling)))
    return model, cases


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_text_does_not_depend_on_the_texts_in_its_batch(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch_module.PREFILL_TOKENS, "cpu", 5)
    model, cases = pool(name)
    rng = random.Random(seed)
    batch, collected = Batch(model, rng.randint(2, 6)), Collected()
    waiting = [(new_sequence(prompt, sampling), text) for prompt, sampling, text in cases]
    rng.shuffle(waiting)
    expected: dict[TextSequence, str] = dict(waiting)
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
            collected.add(batch.prefill())
        together = max(together, batch.num_decoding)
        collected.add(batch.decode())
        check_bounds(batch)
    assert together > 1  # some tokens were computed together
    assert collected.failed == {}
    assert collected.ended == expected.keys() - dropped
    for sequence, text in collected.texts.items():
        assert text == expected[sequence] or sequence in dropped
        assert expected[sequence].startswith(text)


def test_a_long_prompt_is_prefilled_between_tokens_of_other_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(batch_module.PREFILL_TOKENS, "cpu", 5)
    batch, collected = Batch(make("gpt2"), 4), Collected()
    writing, long, short = (
        new_sequence([1] * n, SamplingOptions(max_tokens=20, seed=1)) for n in (1, CONTEXT, 2)
    )
    batch.add(writing)
    collected.add(batch.prefill())
    batch.add(long)
    batch.add(short)
    lengths: dict[TextSequence, int] = {}
    while long not in collected.texts:
        collected.add(batch.prefill())
        collected.add(batch.decode())
        lengths |= {
            one: len(collected.texts[writing]) for one in collected.texts if one not in lengths
        }
    # Five pieces, the short prompt after the first of them, and a token for `writing` every time.
    assert lengths[short] == 3
    assert lengths[long] == 7


def check_bounds(batch: Batch) -> None:
    """A row per sequence, no wider than the context, and no column that is padding in all."""
    padding = batch._cache.padding
    assert len(padding) == batch.num_decoding
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
def test_fp32_logits_in_a_batch_differ_by_rounding_only(name: str) -> None:
    model = make(name)
    prompts = [[1] * 20, [2, 3], [4, 6, 8, 10, 12, 14, 16]]
    caches = [model.new_cache() for _ in prompts]
    apart = [model.logits([p], c)[0] for p, c in zip(prompts, caches, strict=True)]
    tokens = [[int(logits.argmax())] for logits in apart]
    together = PaddedCache()
    for prompt in prompts:
        joining = model.new_cache()
        model.logits([prompt], joining)
        together.add_row(joining)
    assert together.padding == [0, 18, 13]
    got = model.logits(tokens, together.cache, together.padding)
    wanted = torch.cat([model.logits([t], c) for t, c in zip(tokens, caches, strict=True)])
    assert float((got - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


class FailingSampler(Sampler):
    """Raises at its third token, as a sampler does that is given NaN."""

    def __init__(self) -> None:
        super().__init__(SamplingOptions(seed=1), CPU)
        self._calls = count(1)

    def select(self, logits: Tensor) -> int:
        if next(self._calls) == 3:
            raise RuntimeError("probability tensor contains nan")
        return super().select(logits)


def test_a_text_that_fails_does_not_change_the_others() -> None:
    model, cases = pool("gpt2")
    batch, collected = Batch(model, 4), Collected()
    good = {new_sequence(prompt, sampling): text for prompt, sampling, text in cases[:3]}
    failing = TextSequence(
        0,
        [1],
        SamplingOptions(max_tokens=99),
        FailingSampler(),
        Detokenizer(decode, [1]),
        frozenset(),
        CONTEXT,
    )
    unreadable = new_sequence([VOCABULARY + 1], SamplingOptions())  # no such token
    first, *others = good
    for sequence in (first, failing, unreadable, *others):
        batch.add(sequence)
    while batch.sequences:
        collected.add(batch.prefill())
        collected.add(batch.decode())
    assert collected.failed.keys() == {failing, unreadable}
    assert {sequence: collected.texts[sequence] for sequence in good} == good


class IgnoringMask(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """Takes an attention mask and ignores it."""

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
def test_models_that_cannot_be_batched_are_recognised_by_their_class(name: str, why: str) -> None:
    found = why_not_batchable(make(name))
    assert found is not None
    assert why in found


def test_a_model_that_ignores_padding_is_detected_by_a_trial() -> None:
    ignoring_mask = TokenModel(IgnoringMask(CONFIGS["gpt2"]).train(False), CPU, CONTEXT, VOCABULARY)
    found = why_not_batchable(ignoring_mask)
    assert found is not None
    assert "differed by" in found
    assert why_not_batchable(make("gpt2")) is None
    assert why_not_batchable(make("qwen2", torch.bfloat16)) is None
