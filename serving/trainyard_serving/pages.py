"""HTML pages: those of the apps, and /docs with Swagger UI."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
)
# Shared by the apps' pages: a tag in their source, the file and the element that replace it.
SHARED = Path(__file__).with_name("page")
SHARED_PARTS = (
    ('<link rel="stylesheet" href="page.css">', "page.css", "style"),
    ('<script src="page.js"></script>', "page.js", "script"),
)

SWAGGER_UI = Path(fastapi_offline.__file__).with_name("static")
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; base-uri 'none'; form-action 'none'"
)
DOCS_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="docs/static/swagger-ui.css">
<link rel="icon" href="data:,">
<body>
<main id="swagger-ui"></main>
<script src="docs/static/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
DOCS_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


def page(file: Path) -> HTMLResponse:
    """A page that needs no other file: the shared style and script are inlined."""
    text = file.read_text(encoding="utf-8")
    for tag, name, element in SHARED_PARTS:
        part = (SHARED / name).read_text(encoding="utf-8")
        text = text.replace(tag, f"<{element}>\n{part}</{element}>")
    return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})


def add_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI from files on this machine instead of a CDN."""

    async def docs() -> HTMLResponse:
        headers = {"content-security-policy": DOCS_POLICY}
        return HTMLResponse(DOCS_PAGE.format(title=app.title), headers=headers)

    async def start() -> HTMLResponse:
        return HTMLResponse(DOCS_SCRIPT, media_type="text/javascript")

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_api_route("/docs/start.js", start, include_in_schema=False)
    app.mount("/docs/static", StaticFiles(directory=SWAGGER_UI))
