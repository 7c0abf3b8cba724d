"""A residual network for small images, with the size names of Hugging Face's ResNetConfig.

He et al., "Deep Residual Learning for Image Recognition", 2016, with basic blocks: two 3x3
convolutions each. Imports torch alone: this file is copied into exported models, see resnet_hf.py.
Shapes in comments: B images, C channels, H x W pixels.
"""

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

# Channels per normalisation group (16 is best in Wu and He, 2018); widths are multiples of it.
GROUP_CHANNELS = 16


@dataclass(frozen=True)
class ResNetShape:
    """Sizes of the model."""

    num_labels: int
    embedding_size: int  # channels of the first convolution, at full resolution
    hidden_sizes: tuple[int, ...]  # channels of each stage
    depths: tuple[int, ...]  # blocks of each stage
    downsample_in_first_stage: bool  # every later stage halves height and width

    def __post_init__(self) -> None:
        # A config.json has lists.
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        object.__setattr__(self, "depths", tuple(self.depths))


class StandardizedConv2d(nn.Conv2d):
    """A convolution without bias whose weights have mean 0 and a fixed norm per output channel.

    With GroupNorm it learns faster than without, and as well as BatchNorm (Qiao et al., "Weight
    Standardization", 2019).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.fan_in = in_channels * kernel**2

    def forward(self, x: Tensor) -> Tensor:
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)
        return F.conv2d(x, weight * self.fan_in**-0.5, None, self.stride, self.padding)


class ConvNorm(nn.Sequential):
    """A convolution and GroupNorm.

    Not BatchNorm: it normalises over one rank's micro-batch, so the results of a step would depend
    on the number of ranks and micro-batches, and evaluation would use running averages.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            StandardizedConv2d(in_channels, out_channels, kernel, stride),
            nn.GroupNorm(out_channels // GROUP_CHANNELS, out_channels),
        )


class Block(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        # Average pooling uses all pixels; a strided 1x1 convolution would ignore 3 of 4
        # (He et al., "Bag of Tricks for Image Classification", 2019).
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images (B, 3, H, W), normalised -> logits (B, num_labels)."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.stem = ConvNorm(3, shape.embedding_size, 3)
        self.blocks = nn.ModuleList()
        channels = shape.embedding_size
        for stage, (width, depth) in enumerate(zip(shape.hidden_sizes, shape.depths, strict=True)):
            for index in range(depth):
                halve = index == 0 and (stage > 0 or shape.downsample_in_first_stage)
                self.blocks.append(Block(channels, width, 2 if halve else 1))
                channels = width
        self.classifier = nn.Linear(channels, shape.num_labels)
        self._initialise()

    def _initialise(self) -> None:
        """He's normal initialisation; every block starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block):
                nn.init.zeros_(cast(Tensor, module.conv2[1].weight))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.classifier(x.mean((2, 3))))
