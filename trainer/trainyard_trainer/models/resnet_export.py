"""A residual network as AutoModelForImageClassification reads it, with the code it needs."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trainyard_storage.files import write_json
from trainyard_trainer.models.normalisation import Normalisation
from trainyard_trainer.models.resnet import ResNetShape

# Copied into the model: transformers imports them from there, given trust_remote_code=True.
_CODE = ("resnet.py", "resnet_hf.py")
_CONFIG, _MODEL = "TrainyardResNetConfig", "TrainyardResNetForImageClassification"
_BILINEAR = 2  # Pillow's number for it


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
    # ViT's processor does just this: resize, scale to 0..1, normalise.
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
