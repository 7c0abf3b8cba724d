"""The image formats that are accepted, and their media types."""

FORMATS = "JPEG, PNG, GIF, WebP, HEIC or AVIF"
IMAGE_TYPES = frozenset(
    f"image/{name}" for name in ("jpeg", "jpg", "png", "gif", "webp", "heic", "heif", "avif")
)
# What file stores call everything; the first bytes say what it is.
ANY_TYPES = frozenset({"application/octet-stream", "binary/octet-stream"})
