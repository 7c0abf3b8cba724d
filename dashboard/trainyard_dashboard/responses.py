"""JSON answers that cost little when they are asked for again: ETags, 304, and gzip."""

import gzip
import hashlib

from fastapi import Request, Response
from pydantic import BaseModel

MIN_COMPRESSED = 1024  # bytes; a smaller answer fits a packet as it is
GZIP_LEVEL = 5


def json_response(request: Request, content: BaseModel, *, compact: bool = False) -> Response:
    """`content` as JSON without unknown values; 304 if the client has it already.

    compact: also without fields that have their default value.
    """
    text = content.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=compact)
    data = text.encode()
    headers = {
        "cache-control": "private, no-cache",  # kept by the browser, but asked for each time
        "etag": f'W/"{hashlib.sha256(data).hexdigest()[:16]}"',
        "vary": "accept-encoding, authorization",
    }
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    if len(data) >= MIN_COMPRESSED and "gzip" in request.headers.get("accept-encoding", ""):
        data = gzip.compress(data, GZIP_LEVEL, mtime=0)
        headers["content-encoding"] = "gzip"
    return Response(data, headers=headers, media_type="application/json")
