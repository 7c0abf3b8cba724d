"""Labelled images in memory: decoded once, augmented, and stacked into batches."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.cache import keep
from trainyard_trainer.data.rows import Labels
from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
from dataclasses import dataclass

Pixels = npt.NDArray[np.uint8]  # (images, height, width, 3), RGB


_CHUNK = 100  # images at a time, where a wider type is needed


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


def decode_images(where: str, column: "pa.ChunkedArray") -> Pixels:
    """All images of a table's column, (rows, height, width, 3), read-only.

    The column holds encoded images: what Hugging Face's Image feature stores (a struct of `bytes`
    and `path`), or just the bytes. They are decoded once on a machine, and then shared by its
    processes. Raises ConfigError, beginning with `where`, naming the row.
    """
    files = list(_encoded(where, column))
    digest = hashlib.sha256()
    for file in files:
        digest.update(len(file).to_bytes(8, "little") + file)
    kept = keep(f"images-{digest.hexdigest()}", lambda: _decode_all(where, files))
    return np.asarray(kept, np.uint8)


def _decode_all(where: str, files: list[bytes]) -> Pixels:
    pixels = np.empty((0, 0, 0, 3), np.uint8)
    for row, file in enumerate(files):
        image = _decode(where, row, file)
        if row == 0:
            pixels = np.empty((len(files), *image.shape), np.uint8)
        elif image.shape != pixels.shape[1:]:
            raise ConfigError(
                f"{where}: row {row} is {_size(image)} pixels, row 0 is {_size(pixels[0])};"
                " bring all images to one size first"
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
        for value in chunk.to_pylist():  # a chunk at a time: its copy lives no longer
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
            reason = f"{len(encoded)} bytes that are no image Pillow knows"
        raise ConfigError(f"{where}: row {row} can't be decoded: {reason}") from None


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


class Images:
    """Samples of images and their labels; `augmentation` for those to train on."""

    def __init__(
        self, pixels: Pixels, labels: Labels, augmentation: Augmentation | None = None
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.augmentation = augmentation
        # One row per pixel: cutting and flipping are then a single look-up.
        self._rows = pixels.reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def size_text(self) -> str:
        """Width x height, as people say it."""
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
