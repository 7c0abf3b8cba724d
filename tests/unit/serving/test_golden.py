"""A language model must agree with the golden request its trainer wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.unit.serving.trained_gpt import TEXT, export_trained_gpt
from trainyard_api.golden import GOLDEN, GoldenText, read_golden
from trainyard_serving.errors import BadModelError
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain
from trainyard_trainer.data.tokenizers import CharTokenizer


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_trained_gpt(tmp_path, seed=3)
    return tmp_path


def check(directory: Path) -> None:
    LanguageModel.load(describe_plain(directory), "cpu").check()


def test_an_exported_model_agrees_with_its_golden_request(exported: Path) -> None:
    golden = read_golden(exported, GoldenText)
    assert golden
    assert golden.prompt == TEXT[:12]
    check(exported)


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def transpose(weights: dict[str, torch.Tensor]) -> None:
    name = "transformer.h.1.attn.c_proj.weight"  # square: nothing else would notice
    weights[name] = weights[name].t().contiguous()


def swap(weights: dict[str, torch.Tensor]) -> None:
    a, b = "transformer.h.0.ln_1.bias", "transformer.h.0.ln_2.bias"
    weights[a], weights[b] = weights[b], weights[a]


@pytest.mark.parametrize("change", [transpose, swap])
def test_weights_under_wrong_names_are_refused(
    exported: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    change_weights(exported, change)
    with pytest.raises(BadModelError, match="logits differ from the trainer's"):
        check(exported)


def test_another_tokenizer_is_refused(exported: Path) -> None:
    CharTokenizer.of(TEXT.replace("q", "Q")).save(exported, 32)
    with pytest.raises(BadModelError, match="encodes the prompt differently"):
        check(exported)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "or not"}, "encodes the prompt differently"),
        ({"prompt_ids": []}, "promptIds"),
        ({"top_ids": [[9999] * 5] * 4}, "belongs to another model"),
        ({"top_logits": [[0.0] * 5] * 3}, "a list for each of nextIds"),
    ],
)
def test_a_wrong_golden_request_is_refused_in_one_line(
    exported: Path, change: dict[str, Any], words: str
) -> None:
    golden = read_golden(exported, GoldenText)
    assert golden
    text = golden.model_copy(update=change).model_dump_json(by_alias=True)
    (exported / GOLDEN).write_text(text)
    with pytest.raises(BadModelError, match=words) as error:
        check(exported)
    assert "\n" not in str(error.value)
