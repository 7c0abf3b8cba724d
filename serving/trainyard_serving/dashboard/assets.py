"""The page's files, from this package and from Plotly's; nothing is loaded from elsewhere."""

import gzip
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request, Response

from trainyard_api import __version__
from trainyard_serving.errors import ApiError

STATIC = Path(__file__).with_name("static")
PLOTLY = "plotly.min.js"
TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html"}
HEADERS = {
    # Plotly puts rules of its own into the page: styles only, scripts come from this server alone.
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'self';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; base-uri 'none';"
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
    headers = {**HEADERS, "cache-control": "no-cache", "etag": tag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    kind = TYPES[Path(name).suffix]
    # On one machine unpacking takes longer than a few more bytes.
    near = request.client is not None and request.client.host in ("127.0.0.1", "::1")
    if not near and "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(_packed(name), headers=headers, media_type=kind)
    return Response(_data(name), headers=headers, media_type=kind)


@cache
def _names() -> frozenset[str]:
    return frozenset({PLOTLY, *(path.name for path in STATIC.iterdir())})


@cache
def _data(name: str) -> bytes:
    if name != PLOTLY:
        return (STATIC / name).read_bytes()
    package = find_spec("plotly")  # not imported: only its script is of use here
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "package_data" / PLOTLY).read_bytes()


@cache
def _packed(name: str) -> bytes:
    return gzip.compress(_data(name), 6)


def _tag(name: str) -> str:
    return f'"{version("plotly") if name == PLOTLY else __version__}-{len(_data(name))}"'
