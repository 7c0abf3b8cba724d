"""Images inside requests: data: URIs (RFC 2397), which nobody has to fetch."""

import base64
import binascii
import re

from trainyard_serving.vision.formats import ANY_TYPES, FORMATS, IMAGE_TYPES
from trainyard_serving.vision.url import refuse

_HEAD = re.compile(r"data:(?P<type>[a-z0-9.+/-]*)(?P<parameters>(;[a-z0-9.=+-]*)*)", re.IGNORECASE)
MAX_HEAD = 100


def is_data_uri(url: str) -> bool:
    """Whether a URL holds its content."""
    return url[:5].lower() == "data:"


def read_data_uri(uri: str, max_bytes: int) -> bytes:
    """The content of a data: URI; the image's format is checked by its decoder.

    Raises ApiError (400, 413, 415).
    """
    head, comma, _ = uri[:MAX_HEAD].partition(",")
    match = _HEAD.fullmatch(head)
    is_base64 = match is not None and match["parameters"].lower().endswith(";base64")
    if not comma or match is None or not is_base64:
        raise refuse("a data: URI must be data:image/TYPE;base64,DATA", "bad_data_uri")
    kind = match["type"].lower()
    if kind not in IMAGE_TYPES | ANY_TYPES:
        raise refuse(f"is not an image ({FORMATS}): {kind!r}", "unsupported_image", 415)
    start = len(head) + 1
    if (len(uri) - start) * 3 // 4 > max_bytes + 2:  # before anything is decoded
        raise refuse(f"is larger than {max_bytes} bytes", "image_too_large", 413)
    try:
        data = base64.b64decode(uri[start:], validate=True)
    except (binascii.Error, ValueError):
        raise refuse("the data: URI is not valid base64", "bad_data_uri") from None
    if len(data) > max_bytes:
        raise refuse(f"is larger than {max_bytes} bytes", "image_too_large", 413)
    return data
