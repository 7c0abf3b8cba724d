"""Fetches an image from a stranger's URL without being turned against its own network.

    parse the URL strictly -> resolve its host once -> every address public? -> connect to that
    very address -> headers -> body, counted                  (the same again for every redirect)

Nothing between the check and the connection resolves the name a second time, so a name that
changes its address gains nothing. One deadline covers all of it, however slowly bytes drip.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

import httpcore

from trainyard_api import __version__
from trainyard_serving.tls import tls_context
from trainyard_serving.vision.addresses import Address, is_company, why_not_public
from trainyard_serving.vision.network import Connect, Network, connect_tcp
from trainyard_serving.vision.url import Url, parse, refuse

MAX_REDIRECTS = 3
MAX_PIECES = 20_000  # of a body: taking millions of one-byte chunks apart would cost seconds
REDIRECTS = {301, 302, 303, 307, 308}
IMAGE_TYPES = {"image/jpeg", "image/jpg", "image/png", "image/gif", "image/webp"}

_SCHEME = re.compile("[a-z][a-z0-9+.-]*:", re.IGNORECASE)

Resolve = Callable[[str, int], Awaitable[list[Address]]]


async def resolve(host: str, port: int) -> list[Address]:
    """Every address of `host`.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(address[0]) for *_, address in found))


@dataclass(frozen=True)
class FetchLimits:
    """What a fetch may cost, and where it may go.

    Attributes:
        seconds: for everything, from the look-up of the name to the last byte.
        max_bytes: of an image.
        private_hosts: names whose addresses may be private (but never loopback or link-local).
    """

    seconds: float
    max_bytes: int
    ports: frozenset[int]
    private_hosts: frozenset[str] = frozenset()


class Fetcher:
    """Fetches images within limits.

    `resolve` and `connect` are how a name becomes addresses, and a checked address a connection.
    Tests give their own; nothing else may, and no setting can.
    """

    def __init__(
        self, limits: FetchLimits, resolve: Resolve = resolve, connect: Connect = connect_tcp
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._connect = connect
        tls_context()  # read now, not while a request waits

    async def fetch(self, url: str) -> bytes:
        """The bytes that `url` names: at most `max_bytes`, said to be an image.

        Raises ApiError, a 4xx that says why.
        """
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._follow(url)
        except TimeoutError:
            seconds = f"{self._limits.seconds:g} s"
            raise refuse(f"took longer than {seconds}", "fetch_timeout", 422) from None

    async def _follow(self, text: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            url = parse(text, self._limits.ports)
            async with self._get(url) as response:
                if response.status not in REDIRECTS:
                    return await self._body(url, response)
                location = _header(response, b"location")
            if not location:
                raise refuse(f"{url.host} redirects to nowhere", "fetch_failed", 422)
            try:
                # urljoin mends what `parse` would refuse: a whole URL does not go through it.
                text = location if _SCHEME.match(location) else urljoin(str(url), location)
            except ValueError:
                raise refuse(f"{url.host} redirects to no URL", "fetch_failed", 422) from None
        raise refuse(f"redirects more than {MAX_REDIRECTS} times", "too_many_redirects", 422)

    @asynccontextmanager
    async def _get(self, url: Url) -> AsyncIterator[httpcore.Response]:
        # A bare connection: it knows no proxies, cookies, credentials or redirects.
        # At most twice the image may come over the wire, headers and chunks' frames included.
        network = Network(
            await self._addresses(url), self._connect, 2 * self._limits.max_bytes + 65536
        )
        target = httpcore.URL(
            scheme=url.scheme.encode(),
            host=url.host.encode(),
            port=url.port,
            target=url.target.encode(),
        )
        request = httpcore.Request(
            "GET",
            target,
            headers={
                "Host": url.authority,
                "User-Agent": f"trainyard-vision/{__version__}",
                "Accept": ", ".join(sorted(IMAGE_TYPES)),
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
        )
        connection = httpcore.AsyncHTTPConnection(
            target.origin, ssl_context=tls_context(), network_backend=network
        )
        try:
            yield await connection.handle_async_request(request)
        except ssl.SSLError as error:
            raise refuse(f"{url.host}: {error.reason}", "fetch_failed", 422) from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            OSError,
        ) as error:
            said = str(error) or type(error).__name__
            raise refuse(f"{url.host} does not answer: {said}", "fetch_failed", 422) from None
        finally:
            await connection.aclose()

    async def _addresses(self, url: Url) -> list[Address]:
        """Where to connect: the host's addresses, every one of them allowed."""
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise refuse(f"the host {url.host} is not known", "unknown_host", 422)
        for address in addresses:
            why = why_not_public(address)
            named = url.host in self._limits.private_hosts and is_company(address)
            if why and not named:
                shown = url.host if url.host == str(address) else f"{url.host} ({address})"
                raise refuse(f"{shown} is not a public address: {why}", "address_not_public")
        return addresses

    async def _body(self, url: Url, response: httpcore.Response) -> bytes:
        if response.status != 200:
            raise refuse(f"{url.host} answered {response.status}", "fetch_failed", 422)
        kind = _header(response, b"content-type").partition(";")[0].strip().lower()
        if kind not in IMAGE_TYPES:
            kinds = "JPEG, PNG, GIF or WebP"
            got = f"{kind[:60]!r}" if kind else "no content type"
            raise refuse(f"is not a picture ({kinds}): {got}", "unsupported_image", 415)
        encoding = _header(response, b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            # Not asked for, and a small compressed body can unpack to an endless one.
            raise refuse(f"came compressed ({encoding[:20]!r})", "compressed_image", 415)
        limit = self._limits.max_bytes
        too_large = refuse(f"is larger than {limit} bytes", "image_too_large", 413)
        declared = _header(response, b"content-length")
        if declared.isascii() and declared.isdigit() and int(declared) > limit:
            raise too_large
        pieces: list[bytes] = []
        size = 0
        stream: Any = response.stream
        async for piece in stream:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise too_large
            if len(pieces) > MAX_PIECES:
                raise refuse("comes in too many pieces", "fetch_failed", 422)
        return b"".join(pieces)


def _header(response: httpcore.Response, name: bytes) -> str:
    """The header's value; "" when it is missing."""
    return next((v.decode("latin-1") for k, v in response.headers if k.lower() == name), "")
