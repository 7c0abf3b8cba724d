"""Embeddings by transformers alone are those of the server's model, in whatever batch."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BigBirdConfig,
    FNetConfig,
    IBertConfig,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    ViTConfig,
    ViTModel,
)

from tests.support.serving.embed_server import (
    CONFIG,
    CONTEXT,
    SIZE,
    WORDS,
    write_encoder,
    write_modules,
    write_pooling,
    write_roberta,
    write_tokenizer,
)
from tests.support.serving.models import ALPHABET, export_char_gpt
from trainyard_serving.embed.embedder import Embedder, InputError
from trainyard_serving.embed.pooling import read_pooling
from trainyard_serving.embed.settings import EmbedSettings
from trainyard_serving.errors import BadModelError
from trainyard_serving.model_store.verified import describe_plain

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": CONTEXT // 2,
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
}
TEXTS = [" ".join(WORDS[start : start + 1 + 3 * start]) for start in range(9)]


def load(directory: Path, **settings: Any) -> Embedder:
    """The model, loaded and checked."""
    model = Embedder.load(
        describe_plain(directory), EmbedSettings(model=str(directory), threads=1, **settings)
    )
    model.check()
    return model


def hidden_states(directory: Path, text: str) -> torch.Tensor:
    """[tokens, size] of one text by transformers, without padding."""
    auto: Any = AutoTokenizer
    inputs = auto.from_pretrained(directory)(text, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    model = AutoModel.from_pretrained(directory).train(False)
    with torch.inference_mode():
        states: torch.Tensor = model(**inputs).last_hidden_state[0]
    return states


def embed(model: Embedder, texts: list[str]) -> Any:
    return model.compute([model.encode(text, "input", False) for text in texts])


POOLED: dict[str, Any] = {
    "mean_tokens": lambda states: states.mean(0),
    "cls_token": lambda states: states[0],
    "max_tokens": lambda states: states.max(0).values,
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("mode", POOLED)
def test_pooling_is_that_of_the_files_whatever_the_batch(tmp_path: Path, mode: str) -> None:
    write_encoder(tmp_path)
    write_pooling(tmp_path, mode)
    model = load(tmp_path)
    wanted = np.stack([POOLED[mode](hidden_states(tmp_path, text)).numpy() for text in TEXTS])
    np.testing.assert_allclose(embed(model, TEXTS), wanted, atol=1e-5)
    alone = np.concatenate([embed(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(alone, wanted, atol=1e-5)
    assert model.description["pooling"] == mode.removesuffix("_tokens").removesuffix("_token")


def test_without_pooling_in_its_files_an_encoder_has_the_mean(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    model = load(tmp_path)
    wanted = np.stack([hidden_states(tmp_path, text).mean(0).numpy() for text in TEXTS])
    np.testing.assert_allclose(embed(model, TEXTS), wanted, atol=1e-5)
    assert (model.mode, model.normalize, model.dimensions) == ("mean", False, SIZE)


def test_without_pooling_in_its_files_a_causal_model_has_the_last_token(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    texts = [ALPHABET[:number] for number in (1, 5, 20)]
    model = load(tmp_path)
    wanted = np.stack([hidden_states(tmp_path, text)[-1].numpy() for text in texts])
    np.testing.assert_allclose(embed(model, texts), wanted, atol=1e-5)
    assert model.mode == "lasttoken"


def test_newer_files_name_the_mode(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write_pooling(tmp_path, "mean_tokens", normalize=True)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    model = load(tmp_path)
    assert (model.mode, model.normalize) == ("cls", True)
    (tmp_path / "modules.json").unlink()
    assert load(tmp_path).mode == "cls"


def test_a_text_has_as_many_tokens_as_positions_and_files_allow(tmp_path: Path) -> None:
    write_roberta(tmp_path)  # its tokenizer names no limit
    model = load(tmp_path)
    assert model.context_length == CONTEXT
    assert np.isfinite(embed(model, [" ".join(WORDS[: CONTEXT - 2])])).all()
    limits = {"max_seq_length": 8, "do_lower_case": True}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(limits))
    model = load(tmp_path)
    assert model.context_length == 8
    assert list(model.encode("WORD1", "input", False)) == [2, 5, 3]
    assert load(tmp_path, max_batch_tokens=5).context_length == 5


def test_a_table_of_positions_of_another_class_limits_a_text(tmp_path: Path) -> None:
    write_model(tmp_path, IBertConfig(**FAMILY | {"max_position_embeddings": CONTEXT - 7}))
    model = load(tmp_path)
    assert model.context_length == CONTEXT - 8
    assert np.isfinite(embed(model, [" ".join(WORDS[: CONTEXT - 10])])).all()


def test_a_text_that_is_too_long_is_refused_or_truncated(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    model = load(tmp_path)
    fits = model.encode(" ".join(WORDS[: CONTEXT - 2]), "input", False)
    for number in (CONTEXT - 1, 70, len(WORDS), 100 * len(WORDS)):  # the last one in pieces
        text = " ".join((WORDS * 100)[:number])
        with pytest.raises(InputError, match=f"maximum context length is {CONTEXT} tokens"):
            model.encode(text, "input[3]", False)
        cut = model.encode(text, "input[3]", True)
        assert list(cut) == list(fits)
        assert list(cut[-1:]) == [3]


def write_model(directory: Path, config: Any) -> None:
    """An untrained model of any class, and a tokenizer."""
    config.vocab_size = write_tokenizer(directory)
    torch.manual_seed(0)
    auto: Any = AutoModel
    auto.from_config(config).save_pretrained(directory)


FAMILY: dict[str, Any] = CONFIG | {"max_position_embeddings": CONTEXT, "pad_token_id": 0}
FAMILY |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
FAMILIES: dict[str, Any] = {
    "mean": ModernBertConfig(
        **FAMILY, local_attention=4, layer_types=["full_attention", "sliding_attention"]
    ),
    "lasttoken": Qwen3Config(**FAMILY, num_key_value_heads=1, head_dim=16),
}


@pytest.mark.parametrize("mode", FAMILIES)
def test_an_embedding_does_not_depend_on_its_batch(tmp_path: Path, mode: str) -> None:
    """Of an encoder with local attention, and of a causal model with rotary positions."""
    config = FAMILIES[mode]
    write_model(tmp_path, config)
    model = load(tmp_path)
    states = [hidden_states(tmp_path, text) for text in TEXTS]
    wanted = [state.mean(0) if mode == "mean" else state[-1] for state in states]
    np.testing.assert_allclose(embed(model, TEXTS), torch.stack(wanted).numpy(), atol=1e-5)
    assert model.mode == mode


def test_a_model_whose_longest_text_counts_computes_texts_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, LlamaConfig(rope_parameters=LONGROPE, **FAMILY))
    texts = TEXTS[:2] + TEXTS[-2:]  # short ones, and longer ones than the half context
    model = load(tmp_path)
    assert "the longest text of the batch (longrope)" in caplog.text
    wanted = np.stack([hidden_states(tmp_path, text)[-1].numpy() for text in texts])
    np.testing.assert_allclose(embed(model, texts), wanted, atol=1e-5)


def test_a_model_that_cannot_be_padded_computes_texts_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = {name: value for name, value in FAMILY.items() if name != "num_attention_heads"}
    write_model(tmp_path, FNetConfig(**family))
    model = load(tmp_path)
    assert "its texts are computed one at a time, not together: in a trial" in caplog.text
    alone = np.concatenate([embed(model, [text]) for text in TEXTS])
    np.testing.assert_array_equal(embed(model, TEXTS), alone)


def refusal(directory: Path) -> str:
    with pytest.raises(BadModelError) as error:
        load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_files_ask_for_and_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    write_pooling(tmp_path, "weightedmean_tokens")
    assert "pooling_mode_weightedmean_tokens is not supported" in refusal(tmp_path)
    write_pooling(tmp_path, "mean_tokens", pooling_mode_cls_token=True)
    assert "cls and mean is not supported, only one of mean, cls" in refusal(tmp_path)
    write_pooling(tmp_path, "mean_tokens", pooling_mode_mean_tokens=False)
    assert "no mode is not supported" in refusal(tmp_path)
    write_pooling(tmp_path, "mean_tokens", include_prompt=False)
    assert "1_Pooling/config.json: include_prompt: false is not supported" in refusal(tmp_path)
    write_pooling(tmp_path, "mean_tokens")
    write_modules(tmp_path, ["Transformer", "Pooling", "Dense"])
    assert "the modules Transformer, Pooling, Dense are not supported" in refusal(tmp_path)
    write_modules(tmp_path, ["Transformer", "Pooling"])
    (tmp_path / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json is missing" in refusal(tmp_path)
    modules = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(modules.replace("sentence_transformers.models", "own"))
    assert "the modules own.Transformer (not sentence_transformers.*), own." in refusal(tmp_path)
    (tmp_path / "modules.json").write_text(modules.replace("sentence_transformers.models.", ""))
    assert "the modules Transformer (not sentence_transformers.*), Pooling" in refusal(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    assert "modules.json: not valid JSON" in refusal(tmp_path)
    (tmp_path / "modules.json").unlink()
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert "default_prompt_name (query) is not supported" in refusal(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    assert "truncate_dim (8) is not supported: set it to null, and" in refusal(tmp_path)


TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)


@pytest.mark.parametrize("name", TRANSFORMER_CONFIGS)
def test_the_transformers_settings_hold_whatever_their_file_is_called(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"max_seq_length": 8, "do_lower_case": true}')
    pooling = read_pooling(tmp_path)
    assert (pooling.max_tokens, pooling.lowercase) == (8, True)


NEWER: dict[str, Any] = {  # as Sentence Transformers 5.4 and later save it
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
    "unpad_inputs": None,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_args", {"add_pooling_layer": False}),
        ("config_args", {"num_hidden_layers": 1}),
        ("tokenizer_args", {"padding_side": "left"}),
        ("processing_kwargs", {"text": {"add_special_tokens": False}}),
        ("transformer_task", "fill-mask"),
        ("modality_config", {"text": {"method": "get_text_features"}}),
        ("module_output_name", "sentence_embedding"),
        ("of_a_newer_version", 1),
    ],
)
def test_a_transformers_setting_that_is_not_supported_is_refused_by_name(
    tmp_path: Path, key: str, value: Any
) -> None:
    file = tmp_path / "sentence_bert_config.json"
    file.write_text(json.dumps(NEWER | {"model_args": {}, "max_seq_length": 8}))
    assert read_pooling(tmp_path).max_tokens == 8
    file.write_text(json.dumps(NEWER | {key: value}))
    with pytest.raises(ValueError, match=f"{file.name}: {key} is not supported: remove it"):
        read_pooling(tmp_path)


def test_a_pooling_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    write_encoder(tmp_path / "model")
    write_pooling(tmp_path / "model", "cls_token")
    file = tmp_path / "model" / "modules.json"
    file.write_text(file.read_text().replace('"1_Pooling"', '"../1_Pooling"'))
    assert "outside of the model's folder" in refusal(tmp_path / "model")


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Other"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "code of its own (auto_map), which is not run here" in refusal(tmp_path)


def test_a_model_whose_attention_changes_with_the_texts_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, BigBirdConfig(attention_type="block_sparse", **FAMILY))
    wrong = "attention_type block_sparse is not supported, because an embedding would depend on"
    assert wrong in refusal(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["attention_type"] = "original_full"
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path)


def test_a_model_of_images_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    ViTModel(ViTConfig(**CONFIG, image_size=32)).save_pretrained(tmp_path)
    assert "cannot be loaded" in refusal(tmp_path)


def test_a_model_without_weights_or_with_nan_is_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    # Copies: what was loaded may be mapped from the file that is written below.
    model = copy.deepcopy(model)
    state = model.state_dict()
    model.save_pretrained(
        tmp_path, state_dict={k: v for k, v in state.items() if not k.startswith("pooler.")}
    )
    load(tmp_path)  # what the embedding does not need may be missing
    model.save_pretrained(
        tmp_path, state_dict={k: v for k, v in state.items() if "layer.1" not in k}
    )
    assert "weights are missing: encoder.layer.1" in refusal(tmp_path)
    state["embeddings.LayerNorm.weight"].fill_(torch.nan)
    model.save_pretrained(tmp_path)
    assert "the model computes NaN" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("config", "allowed", "refused"),
    [
        ({}, {None, SIZE}, {1, SIZE - 1, SIZE + 1}),
        ({"is_matryoshka": True}, {None, 1, SIZE}, {SIZE + 1}),
        ({"matryoshka_dimensions": [16, 8]}, {None, 8, 16, SIZE}, {1, SIZE + 1}),
    ],
)
def test_embeddings_are_cut_only_to_what_the_model_was_trained_for(
    tmp_path: Path, config: dict[str, Any], allowed: set[int | None], refused: set[int]
) -> None:
    write_encoder(tmp_path, **config)
    model = load(tmp_path)
    for dimensions in allowed:
        model.check_dimensions(dimensions)
    for dimensions in refused:
        with pytest.raises(InputError, match="dimensions: "):
            model.check_dimensions(dimensions)
