"""The residual network for transformers, loaded with trust_remote_code from an exported model.

This file and resnet.py are copied into every exported model, which thus runs the code that was
trained. It imports torch and transformers alone.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .resnet import ResNet, ResNetShape


class TrainyardResNetConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """ResNetShape as a config.json; num_labels follows from id2label."""

    model_type = "trainyard_resnet"

    def __init__(
        self,
        embedding_size: int = 64,
        hidden_sizes: tuple[int, ...] = (64, 128, 256),
        depths: tuple[int, ...] = (2, 2, 2),
        downsample_in_first_stage: bool = False,
        **kwargs: Any,
    ) -> None:
        self.embedding_size = embedding_size
        self.hidden_sizes = list(hidden_sizes)
        self.depths = list(depths)
        self.downsample_in_first_stage = downsample_in_first_stage
        super().__init__(**kwargs)


class TrainyardResNetForImageClassification(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Pixel values (B, 3, H, W), as the image processor gives them -> logits (B, num_labels)."""

    config_class = TrainyardResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TrainyardResNetConfig) -> None:
        super().__init__(config)
        shape = ResNetShape(
            num_labels=len(config.id2label or ()),
            embedding_size=config.embedding_size,
            hidden_sizes=tuple(config.hidden_sizes),
            depths=tuple(config.depths),
            downsample_in_first_stage=config.downsample_in_first_stage,
        )
        self.resnet = ResNet(shape)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        """ResNet initialises itself."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        logits = self.resnet(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
