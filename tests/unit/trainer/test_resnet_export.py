"""An exported ResNet carries its own code: transformers loads it and gives the same logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainyard_trainer.models.resnet import ResNet, ResNetShape
from trainyard_trainer.models.resnet_export import Normalisation, read_resnet, write_resnet

transformers = pytest.importorskip("transformers")

LABELS = ["cat", "dog", "ship"]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ResNet, Normalisation]:
    torch.set_num_threads(1)  # the model is too small for more
    shape = ResNetShape(
        num_labels=3,
        embedding_size=16,
        hidden_sizes=(16, 32),
        depths=(2, 1),
        downsample_in_first_stage=True,
    )
    torch.manual_seed(0)
    model = ResNet(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: all must find their place
            parameter.add_(torch.randn_like(parameter) * 0.2)
    normalisation = Normalisation.of(PIXELS)
    directory = tmp_path_factory.mktemp("model")
    write_resnet(model.state_dict(), shape, LABELS, (16, 16), normalisation, directory)
    return directory, model, normalisation


@pytest.fixture(autouse=True)
def _own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a model's code there before it imports it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))


def test_it_is_read_back(exported: tuple[Path, ResNet, Normalisation]) -> None:
    directory, model, normalisation = exported
    pixel_values = normalisation(torch.from_numpy(PIXELS))
    with torch.no_grad():
        assert torch.equal(read_resnet(directory)(pixel_values), model(pixel_values))


def test_logits_are_equal(exported: tuple[Path, ResNet, Normalisation]) -> None:
    directory, model, normalisation = exported
    theirs: Any = transformers.AutoModelForImageClassification.from_pretrained(
        directory, trust_remote_code=True
    )
    assert not theirs.training
    assert type(theirs).__module__.startswith("transformers_modules.")  # not ours, but its copy
    assert theirs.config.id2label == dict(enumerate(LABELS))
    pixel_values = normalisation(torch.from_numpy(PIXELS))
    with torch.no_grad():
        output = theirs(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 0, 1]))
        torch.testing.assert_close(output.logits, model(pixel_values))
    assert output.loss.item() > 0


def test_its_processor_prepares_images_as_training_did(
    exported: tuple[Path, ResNet, Normalisation],
) -> None:
    directory, _, normalisation = exported
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    images = [Image.fromarray(pixels) for pixels in PIXELS]
    found = torch.as_tensor(np.stack(processor(images)["pixel_values"]))
    torch.testing.assert_close(
        found, normalisation(torch.from_numpy(PIXELS)), rtol=0, atol=1e-5, check_stride=False
    )


def test_the_weights_are_few_and_plain(exported: tuple[Path, ResNet, Normalisation]) -> None:
    directory, model, _ = exported
    names = {path.name for path in directory.iterdir()}
    code = {"resnet.py", "resnet_hf.py"}
    assert names == code | {"config.json", "preprocessor_config.json", "model.safetensors"}
    config = json.loads((directory / "config.json").read_text())
    assert config["hidden_sizes"] == [16, 32]
    assert not list(model.buffers())  # all of the model's state is its parameters
