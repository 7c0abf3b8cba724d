"""The classifier by itself: engines agree, and models that fail a check are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.serving.models import write_manifest
from tests.support.serving.news_model import LABELS, WORDS, write_news_model
from trainyard_api.golden import EVALUATION, GOLDEN, EvaluationText, write_evaluation
from trainyard_serving.classify.classifier import Classifier
from trainyard_serving.errors import BadModelError
from trainyard_serving.model_store.verified import verify_model
from trainyard_serving.settings import ClassifySettings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model."""
    directory = tmp_path_factory.mktemp("news")
    write_news_model(directory)
    return directory


def load(directory: Path, **settings: Any) -> Classifier:
    """The model, loaded and checked."""
    values = ClassifySettings(model=str(directory), threads=1, **settings)
    model = Classifier.load(verify_model(directory), values)
    model.check()
    return model


def test_onnx_computes_what_pytorch_does_at_every_length(directory: Path) -> None:
    torch_model, onnx_model = load(directory), load(directory, engine="onnx")
    assert torch_model.labels == onnx_model.labels == LABELS
    for size in (1, 3, 17):
        texts = [" ".join(WORDS[: 2 * number + 1]) for number in range(size)]
        one, other = (m.probabilities(m.encode(texts)) for m in (torch_model, onnx_model))
        assert one.shape == (size, len(LABELS))
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one.sum(axis=1), 1, atol=1e-5)


def test_padding_changes_nothing(directory: Path) -> None:
    model = load(directory)
    texts = [" ".join(WORDS[:2]), " ".join(WORDS[:20])]
    together = model.probabilities(model.encode(texts))
    alone = np.concatenate([model.probabilities(model.encode([text])) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_int8_is_used_when_accuracy_is_equal(directory: Path) -> None:
    model = load(directory, engine="onnx", precision="int8")
    if model.engine.precision == "fp32":  # 200 texts: one wrong answer is half a point
        assert "int8 costs" in model.details["note"]
    else:
        assert model.details["int8_accuracy"] >= model.details["fp32_accuracy"] - 0.003


def confident(model: Any) -> None:
    """Far from every border between classes: rounding can't move an answer across."""
    model.classifier.weight.zero_()
    model.classifier.bias.copy_(torch.tensor([8.0, 0.0, 0.0, 0.0]))


def outlier(model: Any) -> None:
    """A weight that nothing ever reaches, so large that 8 bits have none left for the others."""
    model.pre_classifier.weight[0] = 0
    model.pre_classifier.bias[0] = -1
    model.classifier.weight[0, 0] = 1e6


def test_the_details_show_the_accuracy_of_int8(tmp_path: Path) -> None:
    write_news_model(tmp_path, change=confident)
    model = load(tmp_path, engine="onnx", precision="int8")
    assert model.details == {
        "engine": "onnx",
        "precision": "int8",
        "fp32_accuracy": 1.0,
        "int8_accuracy": 1.0,
    }


def test_fp32_is_served_when_int8_costs_accuracy(tmp_path: Path) -> None:
    write_news_model(tmp_path, change=outlier)
    model = load(tmp_path, engine="onnx", precision="int8")
    assert model.details["precision"] == "fp32"
    assert model.details["note"].startswith("serving fp32: int8 costs ")
    np.testing.assert_allclose(
        model.probabilities(model.encode(WORDS[:3])),
        load(tmp_path).probabilities(model.encode(WORDS[:3])),
        atol=1e-5,
    )


def test_fp32_is_served_when_int8_cannot_be_checked(tmp_path: Path) -> None:
    write_news_model(tmp_path)
    (tmp_path / EVALUATION).unlink()
    write_manifest(tmp_path)
    model = load(tmp_path, engine="onnx", precision="int8")
    assert model.details["precision"] == "fp32"
    assert "no evaluation texts" in model.details["note"]


def refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(BadModelError) as error:
        load(directory, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_answer_than_the_trainers_is_refused(tmp_path: Path) -> None:
    write_news_model(tmp_path)
    golden = json.loads((tmp_path / GOLDEN).read_text())
    golden["probabilities"][3] = [0.25, 0.25, 0.25, 0.25]
    (tmp_path / GOLDEN).write_text(json.dumps(golden))
    write_manifest(tmp_path, metrics={"accuracy": 1.0})
    assert "differ from the trainer's" in refusal(tmp_path)
    golden["labels"] = LABELS[::-1]
    (tmp_path / GOLDEN).write_text(json.dumps(golden))
    write_manifest(tmp_path)
    assert "other classes" in refusal(tmp_path)
    (tmp_path / GOLDEN).write_text("{}")
    write_manifest(tmp_path)
    assert GOLDEN in refusal(tmp_path)


def test_accuracy_below_the_runs_or_the_settings_is_refused(tmp_path: Path) -> None:
    write_news_model(tmp_path)
    texts = [EvaluationText(text=WORDS[number], label=0) for number in range(100)]
    write_evaluation(tmp_path, texts)
    write_manifest(tmp_path, metrics={"accuracy": 0.99})
    assert "94.0% is required" in refusal(tmp_path)
    write_manifest(tmp_path, metrics={"accuracy": 0.01})
    load(tmp_path)
    assert "90.0% is required" in refusal(tmp_path, min_accuracy=0.9)
    (tmp_path / EVALUATION).unlink()
    write_manifest(tmp_path)
    assert "no evaluation texts" in refusal(tmp_path, min_accuracy=0.9)


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    def nan(model: Any) -> None:
        model.classifier.bias.fill_(torch.nan)

    write_news_model(tmp_path)
    golden = (tmp_path / GOLDEN).read_bytes()
    write_news_model(tmp_path, change=nan)
    (tmp_path / GOLDEN).write_bytes(golden)
    write_manifest(tmp_path)
    assert "differ from the trainer's" in refusal(tmp_path)


def test_a_model_that_is_not_a_classifier_is_refused(tmp_path: Path) -> None:
    write_news_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_manifest(tmp_path)
    assert "cannot be loaded" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path)
    assert "cannot be loaded" in refusal(tmp_path)
