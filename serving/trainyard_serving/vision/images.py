"""Converts untrusted images to new JPEGs; checks the limits before it decodes pixels.

The model's server receives pixels only: no metadata, no further frames, and no unusual encoding on
which its decoder might fail.
"""

import base64
import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps, PngImagePlugin

from trainyard_serving.errors import ApiError, one_line

# Memory for one image, and what its decoder and the copy made here need per pixel (measured, and
# enforced by tests/unit/serving/test_safe_fetch.py). The allocator may keep some MiB more: usually
# 4, at most 12 so far.
MEMORY = 48 * 2**20
BYTES_PER_PIXEL = {"JPEG": 2, "progressive JPEG": 9, "PNG": 5, "GIF": 5, "WEBP": 17}
MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "WEBP": (b"RIFF",),
}
BAND = 60  # rows converted at a time; divisible by many factors
QUALITY = 92

Image.MAX_IMAGE_PIXELS = None  # the limits here are lower, and explained to clients
PngImagePlugin.MAX_TEXT_MEMORY = 2**20  # of decompressed comments; Pillow's limit is 64 MiB


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

    @property
    def data_uri(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


def prepare(data: bytes, max_pixels: int, max_side: int) -> PreparedImage:
    """Convert the first frame to an upright JPEG with no side longer than `max_side`.

    Blocking. Raises ApiError (413, 415, 422).
    """
    kind = next((name for name, magic in MAGIC.items() if data.startswith(magic)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"):
        raise _refuse(415, "is not an image (JPEG, PNG, GIF or WebP)", "unsupported_image")
    try:
        with Image.open(BytesIO(data), formats=[kind]) as image:
            width, height = image.size
            if kind == "JPEG" and image.info.get("progressive"):
                kind = "progressive JPEG"
            limit = min(max_pixels, MEMORY // BYTES_PER_PIXEL[kind])
            if width * height > limit:
                message = f"has {width} x {height} pixels; a {kind} may have at most {limit}"
                raise _refuse(413, message, "too_many_pixels")
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations that swap the sides
            small = _shrink(image, max_side)
    except ApiError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for invalid data
        raise _refuse(422, f"cannot be read: {one_line(error, 200)}", "broken_image") from None
    out = BytesIO()
    small.save(out, "JPEG", quality=QUALITY, subsampling=0)  # keeps small text legible
    width, height = (height, width) if turned else (width, height)
    return PreparedImage(width, height, out.getvalue())


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


def _refuse(status: int, message: str, code: str) -> ApiError:
    return ApiError(status, f"the image {message}", code, "image")
