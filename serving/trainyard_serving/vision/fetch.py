"""Fetches an image from an untrusted URL, and never from an internal address (SSRF).

    parse the URL strictly -> resolve its host once -> check that every address is public
    -> connect to a checked address -> headers -> body, with a size limit    (for each redirect)

The name is not resolved again between the check and the connection, so changing its address (DNS
rebinding) has no effect. One deadline covers everything, however slowly data arrives.
"""
# ruff: noqa: ASYNC109  (the timeouts are httpcore's interface)

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urljoin

import httpcore
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from trainyard_api import __version__
from trainyard_serving.connections import tls_context
from trainyard_serving.errors import one_line
from trainyard_serving.vision.addresses import Address, is_organisation, why_not_public
from trainyard_serving.vision.formats import ANY_TYPES, FORMATS, IMAGE_TYPES
from trainyard_serving.vision.url import Url, parse, refuse

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5  # for each address of a host
MAX_REDIRECTS = 3
MAX_PIECES = 20_000  # of a body: parsing millions of one-byte chunks would take seconds
REDIRECTS = {301, 302, 303, 307, 308}
# Why a fetch failed, in our own words: an error of the system names the address.
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "has no valid certificate for this name"),
    (ssl.SSLError, "does not complete the TLS handshake"),
    (httpcore.ConnectError, "does not accept connections"),
    (httpcore.ConnectTimeout, "does not accept connections"),
    (httpcore.ProtocolError, "does not send valid HTTP"),
)

_SCHEME = re.compile("[a-z][a-z0-9+.-]*:", re.IGNORECASE)

Resolve = Callable[[str, int], Awaitable[list[Address]]]
Connect = Callable[[Address, int], Awaitable[AsyncNetworkStream]]


async def resolve(host: str, port: int) -> list[Address]:
    """All addresses of `host`.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(address[0]) for *_, address in infos))


async def connect_tcp(address: Address, port: int) -> AsyncNetworkStream:
    """A connection to this address.

    Raises httpcore.ConnectError and httpcore.ConnectTimeout.
    """
    return await httpcore.AnyIOBackend().connect_tcp(str(address), port, CONNECT_SECONDS)


@dataclass(frozen=True)
class FetchLimits:
    """Limits on fetching an image.

    Attributes:
        seconds: for everything, from resolving the name to the last byte.
        max_bytes: size of an image.
        ports: those that a URL may contain.
        private_hosts: names whose addresses may be private (but never loopback or link-local).
    """

    seconds: float
    max_bytes: int
    ports: frozenset[int]
    private_hosts: frozenset[str] = frozenset()


class Fetcher:
    """Fetches images within limits.

    `resolve` maps a name to addresses, and `connect` opens a connection to a checked address. Only
    tests replace them; no setting can.
    """

    def __init__(
        self, limits: FetchLimits, resolve: Resolve = resolve, connect: Connect = connect_tcp
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._connect = connect
        tls_context()  # loaded now, not while a request waits

    async def fetch(self, url: str) -> bytes:
        """The content of `url`: at most `max_bytes`, with the media type of an image.

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
                raise refuse(f"{url.host} redirects without a location", "fetch_failed", 422)
            try:
                # urljoin would repair what `parse` refuses, so absolute URLs bypass it.
                text = location if _SCHEME.match(location) else urljoin(str(url), location)
            except ValueError:
                raise refuse(
                    f"{url.host} redirects to an invalid URL", "fetch_failed", 422
                ) from None
        raise refuse(f"redirects more than {MAX_REDIRECTS} times", "too_many_redirects", 422)

    @asynccontextmanager
    async def _get(self, url: Url) -> AsyncIterator[httpcore.Response]:
        # A bare connection: without proxies, cookies, credentials and redirects. A response may be
        # twice as large as an image, including headers and the framing of chunks.
        network = _Network(
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
        except _ResponseTooLargeError:
            raise refuse(
                f"{url.host} sends more than an image of the largest size", "image_too_large", 413
            ) from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            OSError,
        ) as error:
            log.info("%s: %s: %s", url.host, type(error).__name__, one_line(error))
            raise refuse(f"{url.host} {_failure(error)}", "fetch_failed", 422) from None
        finally:
            await connection.aclose()

    async def _addresses(self, url: Url) -> list[Address]:
        """The host's addresses, all of which are allowed."""
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise refuse(f"the host {url.host} is unknown", "unknown_host", 422)
        for address in addresses:
            reason = why_not_public(address)
            allowed = url.host in self._limits.private_hosts and is_organisation(address)
            if reason and not allowed:
                # What an internal DNS server says is not for clients.
                log.info("%s is refused: it has the address %s (%s)", url.host, address, reason)
                is_name = url.host != str(address)
                says = (
                    "is not at a public address"
                    if is_name
                    else f"is not a public address: {reason}"
                )
                raise refuse(f"{url.host} {says}", "address_not_public")
        return addresses

    async def _body(self, url: Url, response: httpcore.Response) -> bytes:
        if response.status != 200:
            raise refuse(f"{url.host} answered {response.status}", "fetch_failed", 422)
        kind = _header(response, b"content-type").partition(";")[0].strip().lower()
        if kind not in IMAGE_TYPES | ANY_TYPES:
            got = f"{kind[:60]!r}" if kind else "no content type"
            raise refuse(f"is not an image ({FORMATS}): {got}", "unsupported_image", 415)
        encoding = _header(response, b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            # It was not requested, and a small compressed body can expand without limit.
            raise refuse(f"is compressed ({encoding[:20]!r})", "compressed_image", 415)
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
                raise refuse("arrives in too many pieces", "fetch_failed", 422)
        return b"".join(pieces)


class _ResponseTooLargeError(httpcore.ReadError):
    """More bytes than an image, its headers and the framing of its chunks may take."""


class _Network(AsyncNetworkBackend):
    """Connects to the first of `addresses` that answers, whatever the host's name."""

    def __init__(self, addresses: Sequence[Address], connect: Connect, max_bytes: int) -> None:
        self._addresses = addresses
        self._connect = connect
        self._max_bytes = max_bytes

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        for address in self._addresses[:-1]:
            try:
                return _LimitedStream(await self._connect(address, port), self._max_bytes)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _LimitedStream(await self._connect(self._addresses[-1], port), self._max_bytes)


class _LimitedStream(AsyncNetworkStream):
    """A stream from which at most `max_bytes` can be read."""

    def __init__(self, stream: AsyncNetworkStream, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise _ResponseTooLargeError
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AsyncNetworkStream:
        inner = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return _LimitedStream(inner, self._left)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _failure(error: Exception) -> str:
    """What the host does wrong."""
    for kind, says in FAILURES:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return says
    return "does not send a whole answer"


def _header(response: httpcore.Response, name: bytes) -> str:
    """The header's value; "" when it is missing."""
    return next((v.decode("latin-1") for k, v in response.headers if k.lower() == name), "")
