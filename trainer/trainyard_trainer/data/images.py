"""Labelled images in memory: decoded once, augmented, and stacked into batches."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.cache import cached
from trainyard_trainer.data.rows import Labels
from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


Pixels = npt.NDArray[np.uint8]  # (images, height, width, 3), RGB
Indices = npt.NDArray[np.int64]

# A sample's noise: four fields of 12 bits for numbers, and the last bit for the flip.
_FIELD_BITS = 12
_ROW, _COLUMN, _CUT_ROW, _CUT_COLUMN = range(4)
_FLIP_BIT = np.uint64(63)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images, different in every epoch.

    Attributes:
        crop_padding: shift by up to this many pixels in each direction, padded by reflection.
        horizontal_flip: mirror half of the images.
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
            flipped = (noise >> _FLIP_BIT).astype(bool)
            columns[flipped] = columns[flipped, ::-1]
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


def decode_images(where: str, column: "pa.ChunkedArray") -> Pixels:
    """All images of a table's column, (rows, height, width, 3), read-only.

    The column holds encoded images: what Hugging Face's Image feature stores (a struct of `bytes`
    and `path`), or just the bytes. They are decoded once per machine and shared by its
    processes. Raises ConfigError, which starts with `where` and names the row.
    """
    files = list(_encoded(where, column))
    digest = hashlib.sha256()
    for file in files:
        digest.update(len(file).to_bytes(8, "little") + file)
    pixels = cached(f"images-{digest.hexdigest()}", lambda: _decode_all(where, files))
    return np.asarray(pixels, np.uint8)


def _decode_all(where: str, files: list[bytes]) -> Pixels:
    pixels = np.empty((0, 0, 0, 3), np.uint8)
    for row, file in enumerate(files):
        image = _decode(where, row, file)
        if row == 0:
            pixels = np.empty((len(files), *image.shape), np.uint8)
        elif image.shape != pixels.shape[1:]:
            raise ConfigError(
                f"{where}: row {row} is {_size(image)} pixels, row 0 is {_size(pixels[0])};"
                " resize all images to one size"
            )
        pixels[row] = image
    return pixels


def _encoded(where: str, column: "pa.ChunkedArray") -> Iterator[bytes]:
    """The file of each row's image."""
    import pyarrow as pa

    kind = column.type
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not is_struct and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise ConfigError(f"{where} holds {kind}, not images; set config.image_column")
    row = 0
    for chunk in column.chunks:
        for value in chunk.to_pylist():  # a chunk at a time, to bound the memory of the copies
            encoded = value
            if isinstance(value, dict):
                encoded = value["bytes"]
                if encoded is None and value.get("path"):
                    encoded = _read(where, row, Path(value["path"]))
            if not encoded:
                raise ConfigError(f"{where}: row {row} has no image")
            yield encoded
            row += 1


def _read(where: str, row: int, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: row {row}: {path}: {error.strerror}") from None


def _decode(where: str, row: int, encoded: bytes) -> Pixels:
    """(height, width, 3); grey images and palettes become RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, UnidentifiedImageError):
            reason = f"{len(encoded)} bytes in no image format that Pillow knows"
        raise ConfigError(f"{where}: row {row} can't be decoded: {reason}") from None


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


class Images:
    """Samples of images and their labels; `augmentation` for training samples."""

    def __init__(
        self, pixels: Pixels, labels: Labels, augmentation: Augmentation | None = None
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.augmentation = augmentation
        # One row per pixel: cropping and flipping are then one gather.
        self._rows = pixels.reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def size_text(self) -> str:
        """Width x height."""
        return _size(self.pixels[0])

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        """`pixels` (len(ids), height, width, 3), uint8, and `labels` (len(ids),)."""
        labels = torch.from_numpy(self.labels[ids])
        if self.augmentation is None:
            return {"pixels": torch.from_numpy(self.pixels[ids]), "labels": labels}
        rows, columns = self.augmentation.crop(*self.size, noise)
        pixels = self._rows.take(flat_index(*self.size, ids, rows, columns), axis=0)
        self.augmentation.cut_out(pixels, noise)
        return {"pixels": torch.from_numpy(pixels), "labels": labels}

    def sha256(self) -> str:
        """Of the pixels and labels."""
        digest = hashlib.sha256(self.pixels.data)
        digest.update(self.labels.data)
        return digest.hexdigest()


def flat_index(height: int, width: int, ids: Ids, rows: Indices, columns: Indices) -> Indices:
    """Indices of pixels into the flat list of all images' pixels: (B, height, width)."""
    flat_rows = ids[:, None] * height + rows
    index: Indices = flat_rows[:, :, None] * width + columns[:, None, :]
    return index


def _draw(noise: Noise, field: int, n: int) -> Indices:
    """One number from 0 to n - 1 per sample."""
    shift, mask = np.uint64(_FIELD_BITS * field), np.uint64((1 << _FIELD_BITS) - 1)
    drawn: Indices = (((noise >> shift) & mask) * np.uint64(n) >> np.uint64(_FIELD_BITS)).astype(
        np.int64
    )
    return drawn


def _mirrored(index: Indices, size: int) -> Indices:
    """Indices beyond an edge, reflected at the edge pixel."""
    index = np.abs(index)
    return np.minimum(index, 2 * (size - 1) - index)
