"""Images are decoded once, changed by their noise alone, and errors name the row."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image

from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data.images import Augmentation, Images, decode_images
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.models.resnet_export import Normalisation

HEIGHT, WIDTH = 6, 10
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, HEIGHT, WIDTH, 3), dtype=np.uint8)
LABELS = np.arange(50) % 3
NOISE = RNG.integers(0, 2**64, 50, dtype=np.uint64)
GREY = np.array([100, 110, 120], dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def column(*values: Any) -> Any:
    rows = [v if isinstance(v, dict | None) else {"bytes": v, "path": None} for v in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.chunked_array([pa.array(rows[:1], kind), pa.array(rows[1:], kind)])


def test_every_kind_of_file_is_decoded(tmp_path: Path) -> None:
    images = [Image.fromarray(pixels) for pixels in PIXELS[:3]]
    path = tmp_path / "a.png"
    images[1].save(path)
    found = decode_images(
        "w", column(encoded(images[0]), {"bytes": None, "path": str(path)}, encoded(images[2]))
    )
    np.testing.assert_array_equal(found, PIXELS[:3])

    grey = images[0].convert("L")
    palette = images[0].convert("P")
    with_alpha = images[0].convert("RGBA")
    found = decode_images("w", column(*(encoded(i) for i in (grey, palette, with_alpha))))
    np.testing.assert_array_equal(found[0], np.asarray(grey)[:, :, None].repeat(3, 2))
    np.testing.assert_array_equal(found[1], np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(found[2], PIXELS[0])

    jpeg = encoded(images[0], "JPEG")
    bare = pa.chunked_array([pa.array([jpeg])])  # a column of files, without a struct
    decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
    np.testing.assert_array_equal(decode_images("w", bare)[0], decoded)


def test_images_are_decoded_once_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = column(*(encoded(Image.fromarray(pixels)) for pixels in PIXELS))
    first = decode_images("w", files)
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(decode_images("w", files), first)
    with pytest.raises(TypeError):  # other images: these would have to be decoded
        decode_images("w", files.slice(1))


GOOD = encoded(Image.fromarray(PIXELS[0]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"GIF?", "w: row 1 can't be decoded: 4 bytes in no image format that Pillow knows"),
        (GOOD[:-40], "w: row 1 can't be decoded: "),
        (None, "w: row 1 has no image"),
        ({"bytes": None, "path": None}, "w: row 1 has no image"),
        ({"bytes": None, "path": "gone.png"}, "w: row 1: gone.png: No such file or directory"),
        (encoded(Image.new("RGB", (7, 5))), "w: row 1 is 7x5 pixels, row 0 is 10x6; resize all"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(bad: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_images("w", column(GOOD, bad))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_column_without_images_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^w holds int64, not images; set config.image_column$"):
        decode_images("w", pa.chunked_array([pa.array([1])]))


@pytest.mark.parametrize("flip", [True, False])
def test_crops_and_flips_are_cut_from_the_mirrored_image(flip: bool) -> None:
    ids = np.array([3, 49, 7, 3])
    augmentation = Augmentation(2, flip, 0, GREY)
    batch = Images(PIXELS, LABELS, augmentation).fetch(ids, NOISE[:4])
    assert batch["labels"].tolist() == LABELS[ids].tolist()
    rows, columns = augmentation.crop(HEIGHT, WIDTH, NOISE[:4])
    for image, i, noise, row, col in zip(
        batch["pixels"].numpy(), ids, NOISE[:4], rows, columns, strict=True
    ):
        padded = np.pad(PIXELS[i], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        cuts = [
            padded[y : y + HEIGHT, x : x + WIDTH][:, ::step]
            for y in range(5)
            for x in range(5)
            for step in ((-1,) if flip and noise >> np.uint64(63) else (1,))
        ]
        assert sum(np.array_equal(image, cut) for cut in cuts) == 1
        np.testing.assert_array_equal(image, PIXELS[i][row][:, col])


def test_augmentation_draws_evenly_from_the_noise_and_from_nothing_else() -> None:
    noise = RNG.integers(0, 2**64, 20_000, dtype=np.uint64)
    augmentation = Augmentation(2, True, 0, GREY)
    rows, columns = augmentation.crop(HEIGHT, WIDTH, noise)
    flipped = columns[:, 4] > columns[:, 5]
    counts = [np.bincount(rows[:, 2], minlength=5), np.bincount(flipped, minlength=2)]
    for count in counts:
        assert np.abs(count / count.sum() - 1 / len(count)).max() < 0.02
    # Which way it is shifted says nothing about the flip.
    assert abs(np.corrcoef(rows[:, 2], flipped)[0, 1]) < 0.03

    images = Images(PIXELS, LABELS, Augmentation(2, True, 3, GREY))
    ids = np.arange(50)
    whole = images.fetch(ids, NOISE)["pixels"]
    parts = [images.fetch(ids[i : i + 1], NOISE[i : i + 1])["pixels"] for i in range(50)]
    assert torch.equal(whole, torch.cat(parts))


def test_cut_outs_are_squares_of_the_mean_colour() -> None:
    augmentation = Augmentation(0, False, 3, GREY)
    batch = Images(np.zeros_like(PIXELS), LABELS, augmentation).fetch(np.arange(50), NOISE)
    hit = batch["pixels"].numpy() != 0
    assert (batch["pixels"].numpy()[hit.all(-1)] == GREY).all()
    # At an edge less of it is seen.
    assert set(hit[..., 0].sum(axis=(1, 2)).tolist()) == {4, 6, 9}
    assert hit[..., 0].any(axis=0).all()  # any pixel may be hit


def test_held_out_images_stay_what_they_are() -> None:
    batch = Images(PIXELS, LABELS).fetch(np.array([4, 2]), NOISE[:2])
    np.testing.assert_array_equal(batch["pixels"], PIXELS[[4, 2]])


def test_normalised_images_have_mean_0_and_deviation_1() -> None:
    pixels = RNG.integers(20, 90, (2500, 3, 4, 3), dtype=np.uint8)
    pixels[..., 2] = 7  # a channel without any contrast
    normal = Normalisation.of(pixels)(torch.from_numpy(pixels))
    assert normal.shape == (2500, 3, 3, 4)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert normal.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert normal.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 0], abs=1e-3)
    again = Normalisation.of(pixels[::-1])
    assert torch.equal(again.std, Normalisation.of(pixels).std)
