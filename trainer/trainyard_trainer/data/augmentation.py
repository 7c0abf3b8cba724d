"""Random crops, flips and cut-outs, drawn from each sample's 64 random bits and nothing else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainyard_trainer.data.sampling import Ids, Noise

Indices = npt.NDArray[np.int64]
# The bits of a sample's noise: fields of 12 for whole numbers, the last one for a coin.
_FIELD_BITS = 12
_ROW, _COLUMN, _CUT_ROW, _CUT_COLUMN = range(4)
_COIN = np.uint64(63)


@dataclass(frozen=True)
class Augmentation:
    """How each training image is changed, anew in every epoch.

    Attributes:
        crop_padding: shift by up to so many pixels in each direction; what comes in is mirrored.
        horizontal_flip: mirror every other image.
        cutout_size: blank a square of this many pixels (DeVries and Taylor, 2017); 0 for none.
        fill: colour of that square, (3,), uint8.
    """

    crop_padding: int
    horizontal_flip: bool
    cutout_size: int
    fill: npt.NDArray[np.uint8]

    def crop(self, height: int, width: int, noise: Noise) -> tuple[Indices, Indices]:
        """Which row and which column each output pixel comes from: (B, height), (B, width)."""
        shifts = 2 * self.crop_padding + 1
        down = _draw(noise, _ROW, shifts) - self.crop_padding
        right = _draw(noise, _COLUMN, shifts) - self.crop_padding
        rows = _mirrored(np.arange(height) + down[:, None], height)
        columns = _mirrored(np.arange(width) + right[:, None], width)
        if self.horizontal_flip:
            heads = (noise >> _COIN).astype(bool)
            columns[heads] = columns[heads, ::-1]
        return rows, columns

    def cut_out(self, pixels: npt.NDArray[np.uint8], noise: Noise) -> None:
        """Blank a square around a random pixel of each image, in place: (B, height, width, 3)."""
        if not self.cutout_size:
            return
        height, width = pixels.shape[1:3]
        top = _draw(noise, _CUT_ROW, height) - self.cutout_size // 2
        left = _draw(noise, _CUT_COLUMN, width) - self.cutout_size // 2
        rows, columns = np.arange(height) - top[:, None], np.arange(width) - left[:, None]
        rows_hit = (rows >= 0) & (rows < self.cutout_size)
        columns_hit = (columns >= 0) & (columns < self.cutout_size)
        pixels[rows_hit[:, :, None] & columns_hit[:, None, :]] = self.fill


def flat_index(height: int, width: int, ids: Ids, rows: Indices, columns: Indices) -> Indices:
    """Where pixels stand in the list of all images' pixels: (B, height, width)."""
    lines = ids[:, None] * height + rows
    index: Indices = lines[:, :, None] * width + columns[:, None, :]
    return index


def _draw(noise: Noise, field: int, n: int) -> Indices:
    """One number from 0 to n - 1 per sample."""
    shift, mask = np.uint64(_FIELD_BITS * field), np.uint64((1 << _FIELD_BITS) - 1)
    drawn: Indices = (((noise >> shift) & mask) * np.uint64(n) >> np.uint64(_FIELD_BITS)).astype(
        np.int64
    )
    return drawn


def _mirrored(index: Indices, size: int) -> Indices:
    """Indices beyond an edge, reflected at the pixel that is the edge."""
    index = np.abs(index)
    return np.minimum(index, 2 * (size - 1) - index)
