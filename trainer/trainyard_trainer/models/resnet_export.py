"""Export of a residual network for AutoModelForImageClassification, with its code."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard_storage.files import write_json
from trainyard_trainer.models.resnet import ResNet, ResNetShape

_CHUNK = 100  # images at a time, to bound memory


@dataclass
class Normalisation:
    """Pixels from 0 to 1 minus `mean`, divided by `std`; both (3,), of the training images."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Self:
        counts = np.zeros((3, 256), np.int64)  # how often each channel has each value
        for start in range(0, len(pixels), _CHUNK):
            for channel in range(3):
                values = pixels[start : start + _CHUNK, ..., channel].ravel()
                counts[channel] += np.bincount(values, minlength=256)
        share, levels = counts / counts[0].sum(), np.arange(256)
        mean = share @ levels
        variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
        std = np.sqrt(np.maximum(variance, 1))  # a constant channel: 1 of 255
        return cls(torch.from_numpy(mean / 255).float(), torch.from_numpy(std / 255).float())

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, height, width, 3) -> float (batch, 3, height, width), in
        channels-last memory format, the fastest for convolutions."""
        self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return ((pixels.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)


# Copied into the model, where transformers imports them with trust_remote_code=True.
_CODE = ("resnet.py", "resnet_hf.py")
_CONFIG, _MODEL = "TrainyardResNetConfig", "TrainyardResNetForImageClassification"
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR


def write_resnet(
    weights: dict[str, Tensor],
    shape: ResNetShape,
    labels: Sequence[str],
    size: tuple[int, int],
    normalisation: Normalisation,
    directory: Path,
) -> None:
    """Write model.safetensors, config.json, preprocessor_config.json and the code.

    `size`: height and width of the images it was trained on.
    """
    from safetensors.torch import save_file

    tensors = {f"resnet.{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    sizes: dict[str, Any] = dataclasses.asdict(shape)
    del sizes["num_labels"]  # transformers counts id2label
    config = {
        "architectures": [_MODEL],
        "model_type": "trainyard_resnet",
        "auto_map": {
            "AutoConfig": f"resnet_hf.{_CONFIG}",
            "AutoModelForImageClassification": f"resnet_hf.{_MODEL}",
        },
        **sizes,
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
        "problem_type": "single_label_classification",
        "dtype": "float32",
    }
    write_json(directory / "config.json", config)
    # ViT's processor: resize, scale to 0..1, normalise.
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": normalisation.mean.tolist(),
        "image_std": normalisation.std.tolist(),
    }
    write_json(directory / "preprocessor_config.json", processor)
    for name in _CODE:
        shutil.copyfile(Path(__file__).with_name(name), directory / name)


def read_resnet(directory: Path) -> ResNet:
    """The model that `write_resnet` wrote, in evaluation mode.

    Without transformers, whose import takes seconds: it would run the same ResNet.
    """
    from safetensors.torch import load_file

    config = json.loads((directory / "config.json").read_bytes())
    sizes = {field.name: config.get(field.name) for field in dataclasses.fields(ResNetShape)}
    with torch.device("meta"):
        model = ResNet(ResNetShape(**sizes | {"num_labels": len(config["id2label"])}))
    tensors = load_file(directory / "model.safetensors")
    weights = {name.removeprefix("resnet."): tensor for name, tensor in tensors.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()
