"""Converts untrusted images to new JPEGs; checks the limits before it decodes pixels.

Runs in a decoder's process (decoder.py). The model's server receives pixels only: no metadata, no
further frames, and no unusual encoding on which its decoder might fail.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pi_heif import register_heif_opener  # type: ignore[import-untyped]
from PIL import AvifImagePlugin, Image, ImageOps, PngImagePlugin

from trainyard_serving.vision.formats import FORMATS

# What a decoder and the copy made here need per pixel, at most (measured, and enforced by
# tests/unit/serving/test_vision_decoders.py).
BYTES_PER_PIXEL = {
    "JPEG": 6,
    "progressive JPEG": 13,
    "PNG": 6,
    "GIF": 5,
    "WEBP": 18,
    "HEIF": 18,
    "AVIF": 18,
}
MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
}
# Brands of the ISO base media file format. mif1 and msf1 name the container, not the codec.
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
MAX_BRANDS = 32
BAND = 60  # rows converted at a time; divisible by many factors
QUALITY = 92

Image.MAX_IMAGE_PIXELS = None  # the limits here are explained to clients
PngImagePlugin.MAX_TEXT_MEMORY = 2**20  # of decompressed comments; Pillow's limit is 64 MiB
# One thread for each decoder: every further one reserves memory of its own.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class RefusedImageError(Exception):
    """An image that is not accepted: the answer's status and code, and a line in our own words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """Limits on an image.

    Attributes:
        max_pixels: of the image itself.
        max_side: longest side of the result, in pixels.
        memory: for decoding, in bytes.
    """

    max_pixels: int
    max_side: int
    memory: int


@dataclass(frozen=True)
class PreparedImage:
    """An image that may be sent to a model.

    Attributes:
        width, height: of the original, upright, in pixels.
        jpeg: its pixels, perhaps fewer of them.
    """

    width: int
    height: int
    jpeg: bytes


def prepare(data: bytes, limits: Limits) -> PreparedImage:
    """Convert the first frame to an upright JPEG.

    Raises RefusedImageError (413, 415, 422), with the decoder's own error as its cause.
    """
    kind = _kind(data)
    if kind is None:
        raise RefusedImageError(415, "unsupported_image", f"is not an image ({FORMATS})")
    if kind == "WEBP":  # Pillow allocates all pixels when it opens one
        _check_size(kind, _webp_size(data), limits)
    try:
        with Image.open(BytesIO(data), formats=[kind]) as image:
            width, height = image.size
            if kind == "JPEG" and image.info.get("progressive"):
                kind = "progressive JPEG"
            _check_size(kind, image.size, limits)
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
            small = _shrink(image, limits.max_side)
    except RefusedImageError:
        raise
    except MemoryError as error:
        message = "needs more memory than its pixels should: it is damaged, or of an unusual kind"
        raise RefusedImageError(413, "too_much_memory", message) from error
    except Exception as error:  # decoders raise many kinds of errors for invalid data
        message = "cannot be read: it is damaged or incomplete"
        raise RefusedImageError(422, "broken_image", message) from error
    out = BytesIO()
    small.save(out, "JPEG", quality=QUALITY, subsampling=0)  # keeps small text legible
    width, height = (height, width) if turned else (width, height)
    return PreparedImage(width, height, out.getvalue())


def _check_size(kind: str, size: tuple[int, int], limits: Limits) -> None:
    """Raise RefusedImageError if an image of that kind has too many pixels."""
    width, height = size
    limit = min(limits.max_pixels, limits.memory // BYTES_PER_PIXEL[kind])
    if width * height > limit:
        shown = {"HEIF": "HEIC", "WEBP": "WebP"}.get(kind, kind)
        message = f"has {width} x {height} pixels; a {shown} may have at most {limit}"
        raise RefusedImageError(413, "too_many_pixels", message)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP's header (RFC 9649); 0 of one that Pillow will refuse."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        bits = int.from_bytes(data[26:30], "little")
        return bits & 0x3FFF, bits >> 16 & 0x3FFF
    return 0, 0


def _kind(data: bytes) -> str | None:
    """Pillow's name of the format, by the first bytes."""
    for name, magic in MAGIC.items():
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), 16 + 4 * MAX_BRANDS, len(data))
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS else None


def _shrink(image: Any, max_side: int) -> Image.Image:
    scale = min(1, max_side / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    image.draft("RGB", size)  # JPEG: decode at 1/2, 1/4 or 1/8 where that is enough
    factor = max(1, round(max(image.size) / max_side))
    while BAND % factor:
        factor -= 1
    exif = image.getexif()
    image.load()
    width, height = image.size
    reduced = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    # In bands, because a second image of full size would double the memory.
    for top in range(0, height, BAND):
        band = _on_white(image.crop((0, top, width, min(top + BAND, height))))
        reduced.paste(band.reduce(factor), (0, top // factor))
    image.close()
    reduced.thumbnail((max_side, max_side))
    reduced.getexif().update({0x0112: exif.get(0x0112, 1)})
    return ImageOps.exif_transpose(reduced)


def _on_white(band: Any) -> Image.Image:
    if band.mode.startswith("I;16"):
        band = band.point(lambda value: value * (1 / 256)).convert("L")
    rgba = band.convert("RGBA")
    white = Image.new("RGB", band.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
