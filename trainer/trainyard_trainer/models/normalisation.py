"""Image normalisation: the mean and standard deviation of the training images, per channel."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CHUNK = 100  # images at a time, where a wider type is needed


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
        std = np.sqrt(np.maximum(variance, 1))  # of a channel without contrast: 1 of 255
        return cls(torch.from_numpy(mean / 255).float(), torch.from_numpy(std / 255).float())

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, height, width, 3) -> float (batch, 3, height, width), channels last in
        memory, as convolutions like it best."""
        self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return ((pixels.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
