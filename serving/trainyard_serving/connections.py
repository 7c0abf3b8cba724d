"""HTTP connections: incoming ones that clients close early, and TLS for outgoing ones."""

import asyncio
import functools
import ssl
from collections.abc import Awaitable
from typing import TypeVar

import httpx
from fastapi import Request

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499  # nginx's code; nobody receives this response, but metrics count it


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None if the client disconnects first, which cancels `work`.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Trusts certifi's authorities, or those of SSL_CERT_FILE or SSL_CERT_DIR.

    Shared by all clients, because reading the certificates takes a noticeable time.
    """
    return httpx.create_ssl_context()
