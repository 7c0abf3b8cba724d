"""Untrusted images become small, upright JPEGs; too large ones are refused."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.support.serving.hostile_web import picture, png_chunk, png_claiming
from trainyard_serving.vision.images import (
    BYTES_PER_PIXEL,
    Limits,
    PreparedImage,
    RefusedImageError,
    prepare,
)

MEMORY = 48 * 2**20
LIMITS = Limits(max_pixels=16_000_000, max_side=1536, memory=MEMORY)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(result: PreparedImage) -> Image.Image:
    image = Image.open(io.BytesIO(result.jpeg))
    image.load()
    return image


def near(pixel: Any, wanted: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "HEIF", "AVIF"])
def test_each_format_becomes_a_jpeg_of_the_same_pixels(kind: str) -> None:
    result = prepare(picture(kind, (50, 30), "green"), LIMITS)
    image = opened(result)
    assert (result.width, result.height) == image.size == (50, 30)
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert near(image.getpixel((25, 15)), (0, 128, 0))


def test_large_images_are_scaled_down_in_proportion() -> None:
    result = prepare(picture("JPEG", (3000, 1000)), replace(LIMITS, max_side=600))
    assert (result.width, result.height) == (3000, 1000)
    width, height = opened(result).size
    assert 450 <= width <= 600
    assert abs(width / height - 3) < 0.05


def test_bands_join_without_seams() -> None:
    height = 2500  # many bands, and the last one is not full
    stripes = Image.frombytes("L", (1, height), bytes((y // 250) * 25 for y in range(height)))
    image = opened(
        prepare(saved(stripes.resize((900, height)), "PNG"), replace(LIMITS, max_side=1250))
    )
    assert image.size == (450, 1250)
    for stripe in range(10):
        grey = stripe * 25
        assert near(image.getpixel((200, stripe * 125 + 60)), (grey, grey, grey))


def test_transparency_is_white_and_16_bits_are_scaled() -> None:
    clear = prepare(saved(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"), LIMITS)
    assert near(opened(clear).getpixel((9, 9)), (255, 255, 255))
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([0, 0, 255] * 256)
    blue = prepare(saved(palette, "PNG"), LIMITS)
    assert near(opened(blue).getpixel((9, 9)), (0, 0, 255))
    deep = Image.frombytes("I;16", (20, 20), struct.pack("<H", 0x8000) * 400)
    grey = prepare(saved(deep, "PNG"), LIMITS)
    assert near(opened(grey).getpixel((9, 9)), (128, 128, 128))
    cmyk = prepare(saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"), LIMITS)
    assert near(opened(cmyk).getpixel((9, 9)), (255, 0, 0))


def test_exif_orientation_is_applied_and_metadata_is_removed() -> None:
    image = Image.new("RGB", (60, 40), "red")
    image.paste("blue", (0, 0, 30, 40))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, turned by 90 degrees
    exif[0x010F] = "a camera"
    result = prepare(saved(image, "JPEG", exif=exif, quality=95), LIMITS)
    turned = opened(result)
    assert (result.width, result.height) == turned.size == (40, 60)
    assert near(turned.getpixel((20, 10)), (0, 0, 255))
    assert near(turned.getpixel((20, 50)), (255, 0, 0))
    assert not dict(turned.getexif())


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(opened(prepare(data, LIMITS)).getpixel((9, 9)), (255, 0, 0))


def square(kind: str, pixels: int) -> bytes:
    """A picture of that many pixels, in memory only as large as its file."""
    side = int(pixels**0.5)
    options = {"progressive": True} if kind.startswith("progressive") else {}
    return saved(Image.new("RGB", (side, side)), kind.split()[-1], **options)


@pytest.mark.parametrize("kind", BYTES_PER_PIXEL)
def test_the_pixel_limit_depends_on_the_format(kind: str) -> None:
    allowed = 100_000
    limits = replace(LIMITS, memory=allowed * BYTES_PER_PIXEL[kind])
    assert prepare(square(kind, allowed - 1000), limits)
    with pytest.raises(RefusedImageError, match=f"at most {allowed}") as error:
        prepare(square(kind, allowed + 1000), limits)
    assert error.value.status == 413
    with pytest.raises(RefusedImageError, match="at most 5000"):
        prepare(square(kind, 6000), replace(limits, max_pixels=5000))


def test_more_memory_per_pixel_means_fewer_pixels() -> None:
    with pytest.raises(RefusedImageError, match=f"a PNG may have at most {MEMORY // 6}"):
        prepare(png_claiming(4000, 4000), LIMITS)


def garbled(data: bytes) -> bytes:
    return data[:40] + bytes(byte ^ 0x55 for byte in data[40:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "HEIF", "AVIF"])
@pytest.mark.parametrize("change", [lambda data: data[:30], garbled])
def test_unreadable_images_are_one_line(kind: str, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(RefusedImageError) as error:
        prepare(change(picture(kind, (64, 64))), LIMITS)
    assert error.value.status in (415, 422)
    assert error.value.message.startswith(("cannot be read: it is damaged", "is not an image ("))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"BM" + bytes(60), b"<svg/>", b"RIFF0000AVI ", b"%PDF-1.7"),
        *(b"\0\0\0\x14ftypisom\0\0\0\0mp42", b"\xff\xff\xff\xffftyp", b"\0\0\0\x10ftypM4A "),
    ],
)
def test_other_formats_are_a_415(data: bytes) -> None:
    with pytest.raises(RefusedImageError) as error:
        prepare(data, LIMITS)
    assert error.value.status == 415


def test_decompressed_comments_are_limited() -> None:
    comment = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))
    with pytest.raises(RefusedImageError, match="cannot be read"):
        prepare(png_claiming(10, 10, *[comment] * 5), LIMITS)
