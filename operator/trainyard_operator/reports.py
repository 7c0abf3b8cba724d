"""Rank 0's progress report, over HTTP from its pod."""

import asyncio
import json
from typing import Any

import aiohttp
from pydantic import ValidationError

from trainyard_api.progress import REPORT_PORT, ProgressReport

TIMEOUT = aiohttp.ClientTimeout(total=2.0)
MAX_BYTES = 256 * 1024


def session() -> aiohttp.ClientSession:
    """A session that talks to pods directly, whatever proxy the environment names."""
    return aiohttp.ClientSession(timeout=TIMEOUT, trust_env=False)


async def fetch(
    http: aiohttp.ClientSession, address: str, port: int = REPORT_PORT
) -> ProgressReport | None:
    """The report at `address`; None while there is none that can be read."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with http.get(f"http://{host}:{port}/progress", allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            body = await answer.content.readexactly(MAX_BYTES)  # a report is far shorter
    except asyncio.IncompleteReadError as short:
        return parse(short.partial)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None
    return parse(body)


def parse(body: bytes) -> ProgressReport | None:
    """A report from another process, maybe of a newer version: keys we don't know are dropped."""
    try:
        said: Any = json.loads(body)
        return ProgressReport.model_validate(_known(said))
    except (ValueError, ValidationError, AttributeError):
        return None


def _known(said: dict[str, Any]) -> dict[str, Any]:
    names = {field.alias for field in ProgressReport.model_fields.values()}
    return {key: value for key, value in said.items() if key in names}
