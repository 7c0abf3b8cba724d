"""The loaded model: agreement with transformers, the sliding window, prompts it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from tests.support.serving.completions import text_of as text
from tests.support.serving.completions import write
from tests.support.serving.models import ALPHABET, CONTEXT, export_char_gpt, write_manifest
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_serving.errors import BadModelError
from trainyard_serving.generate.engine import Chunk, PromptError
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain, verify_model

WEIGHTS = "model.safetensors"


def load(directory: Path) -> LanguageModel:
    return LanguageModel.load(describe_plain(directory), "cpu")


@pytest.fixture(scope="module")
def model(run_dir: Path) -> LanguageModel:
    return LanguageModel.load(verify_model(run_dir / MODELS / step_name(500)), "cpu")


def complete(model: LanguageModel, prompt: str, **sampling: Any) -> list[Chunk]:
    return write(model, model.encode(prompt), **sampling)


@pytest.mark.parametrize("which", ["run_dir", "stories_dir"])
def test_greedy_text_is_what_transformers_generates(
    which: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(which)
    if which == "run_dir":
        directory = directory / MODELS / step_name(500)
    ours = LanguageModel.load(verify_model(directory), "cpu")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theirs: Any = AutoModelForCausalLM.from_pretrained(directory)
    prompt, new = "Once upon", CONTEXT - 9
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = theirs.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        suppress_tokens=[tokenizer.unk_token_id, *range(len(tokenizer), theirs.config.vocab_size)],
    )
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert prompt + text(complete(ours, prompt, max_tokens=new, temperature=0)) == expected


def test_beyond_the_context_its_newer_half_is_processed_again(model: LanguageModel) -> None:
    """The first token after the slide is the one a fresh prompt of that half would get."""
    prompt = "x" * 10
    longer = complete(model, prompt, max_tokens=CONTEXT, temperature=0)
    so_far = (prompt + text(longer))[: CONTEXT + 1]
    fresh = complete(model, so_far[-CONTEXT // 2 :], max_tokens=1, temperature=0)
    assert (prompt + text(longer))[CONTEXT + 1] == text(fresh)
    assert sum(chunk.num_tokens for chunk in longer) == CONTEXT


def test_long_texts_have_the_requested_length(model: LanguageModel) -> None:
    chunks = complete(model, "a", max_tokens=5 * CONTEXT, seed=1)
    assert len(text(chunks)) == 5 * CONTEXT
    assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "length"]


def test_only_tokens_of_the_tokenizer_are_generated(model: LanguageModel) -> None:
    written = text(complete(model, "a", max_tokens=500, temperature=2, seed=3))
    assert len(written) == 500
    assert set(written) <= set(ALPHABET)


def test_a_stop_string_ends_the_text_before_it(model: LanguageModel) -> None:
    whole = text(complete(model, "To be", max_tokens=60, seed=5))
    stop = whole[20:23]
    chunks = complete(model, "To be", max_tokens=60, seed=5, stop=(stop,))
    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_end_of_text_ends_the_completion(model: LanguageModel, tmp_path: Path) -> None:
    whole = text(complete(model, "To be", max_tokens=60, seed=5))
    end = whole[20]
    export_char_gpt(tmp_path, eos_token_id=1 + ALPHABET.index(end))
    write_manifest(tmp_path)
    ending = LanguageModel.load(verify_model(tmp_path), "cpu")
    chunks = complete(ending, "To be", max_tokens=60, seed=5)
    assert text(chunks) == whole[: whole.index(end)]
    assert chunks[-1].finish_reason == "stop"
    assert sum(chunk.num_tokens for chunk in chunks) == whole.index(end) + 1


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ("a#b%c#", "unknown_characters", "'#' (U+0023), '%' (U+0025)"),
        ("tab\there", "unknown_characters", r"'\t' (U+0009)"),
        ("", "empty_prompt", "empty"),
        ("a" * (CONTEXT + 1), "context_length_exceeded", f"{CONTEXT + 1} tokens"),
    ],
)
def test_unsuitable_prompts_are_refused_with_the_reason(
    model: LanguageModel, prompt: str, code: str, words: str
) -> None:
    with pytest.raises(PromptError) as error:
        model.encode(prompt)
    assert error.value.code == code
    assert words in str(error.value)


def test_a_prompt_may_fill_the_context(model: LanguageModel) -> None:
    assert len(text(complete(model, "é" * CONTEXT, max_tokens=3, seed=0))) == 3


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the state of a DistributedDataParallel has them."""
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def without_a_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if ".h.1." not in name}


@pytest.mark.parametrize("change", [rename, without_a_layer])
def test_a_model_without_all_its_weights_is_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    export_char_gpt(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / WEIGHTS)
    safetensors.torch.save_file(change(weights), tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BadModelError, match="weights are missing: ") as error:
        load(tmp_path)
    assert " more" in str(error.value)


def test_weights_that_are_no_safetensors_file_are_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(BadModelError, match="cannot be loaded: Error while deserializing header"):
        load(tmp_path)


def test_a_model_for_another_task_is_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    config = GPT2Config.from_pretrained(tmp_path)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(BadModelError, match="GPT2ForSequenceClassification is not a causal"):
        load(tmp_path)


def test_a_model_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BadModelError, match="it has no tokenizer: save it into the same folder"):
        load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    config = GPT2Config.from_pretrained(tmp_path, vocab_size=20)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadModelError, match="the model only 20 embeddings"):
        load(tmp_path)


def test_a_prompt_with_a_special_token_that_has_no_embedding_is_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = GPT2Config.from_pretrained(tmp_path, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert complete(model, "a", max_tokens=2)
    with pytest.raises(PromptError, match="does not know these characters"):
        model.encode("a<pad>")


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    broken: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(torch.nan)
    broken.save_pretrained(tmp_path)
    write_manifest(tmp_path)
    model = LanguageModel.load(verify_model(tmp_path), "cpu")
    with pytest.raises(BadModelError, match="computes NaN"):
        model.check()


def test_a_directory_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path)
    with pytest.raises(BadModelError, match="cannot be loaded") as error:
        LanguageModel.load(verify_model(tmp_path), "cpu")
    assert "\n" not in str(error.value)


def test_cached_and_uncached_logits_are_equal(model: LanguageModel) -> None:
    """At every position, however the text is cut into what is read at once."""
    ids = model.encode("To be, or not to be: that is"[: CONTEXT - 4].replace(":", ","))
    whole = model.tokens.module(torch.tensor([ids])).logits[0]
    for pieces in ([1] * len(ids), [5, 1, len(ids) - 6]):
        cache = model.tokens.new_cache()
        read = 0
        for size in pieces:
            got = model.tokens.logits([ids[read : read + size]], cache)[0]
            read += size
            torch.testing.assert_close(got, whole[read - 1], rtol=1e-4, atol=1e-4)
