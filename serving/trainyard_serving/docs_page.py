"""/docs: Swagger UI over an app's OpenAPI, from files on this machine instead of a CDN."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

STATIC = Path(fastapi_offline.__file__).with_name("static")
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
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
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""


def add_docs(app: FastAPI) -> None:
    """Add /docs and what it loads."""

    async def docs() -> HTMLResponse:
        headers = {"content-security-policy": POLICY}
        return HTMLResponse(PAGE.format(title=app.title), headers=headers)

    async def start() -> HTMLResponse:
        return HTMLResponse(START, media_type="text/javascript")

    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_api_route("/docs/start.js", start, include_in_schema=False)
    app.mount("/docs/static", StaticFiles(directory=STATIC))
