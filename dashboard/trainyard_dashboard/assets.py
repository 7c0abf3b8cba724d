"""The page's files, all from this package: nothing is loaded from elsewhere."""

import hashlib
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response

from trainyard_serving.errors import ApiError

STATIC = Path(__file__).with_name("static")
TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html", ".yaml": "text/plain"}
HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'self';"
    " style-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_pages(app: FastAPI) -> None:
    """Add / and /static/NAME."""

    def index(request: Request) -> Response:
        return _answer(request, "index.html")

    def static(request: Request, name: str) -> Response:
        return _answer(request, name)

    app.add_api_route("/", index, include_in_schema=False)
    app.add_api_route("/static/{name}", static, include_in_schema=False)


def _answer(request: Request, name: str) -> Response:
    if name not in _names():
        raise ApiError(404, f"there is no file {name}")
    tag = _tag(name)
    headers = {**HEADERS, "cache-control": "no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(_data(name), headers=headers, media_type=TYPES[Path(name).suffix])


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in STATIC.iterdir())


@cache
def _data(name: str) -> bytes:
    return (STATIC / name).read_bytes()


@cache
def _tag(name: str) -> str:
    return f'"{hashlib.sha256(_data(name)).hexdigest()[:16]}"'
