"""Connections to addresses that have been checked; counts what comes in over them."""
# ruff: noqa: ASYNC109  (the timeouts are httpcore's interface)

import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpcore
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from trainyard_serving.vision.addresses import Address

CONNECT_SECONDS = 5  # then the host's next address gets its chance

Connect = Callable[[Address, int], Awaitable[AsyncNetworkStream]]


async def connect_tcp(address: Address, port: int) -> AsyncNetworkStream:
    """A connection to exactly this address.

    Raises httpcore.ConnectError and httpcore.ConnectTimeout.
    """
    return await httpcore.AnyIOBackend().connect_tcp(str(address), port, CONNECT_SECONDS)


class Network(AsyncNetworkBackend):
    """Connects to the first of `addresses` that answers, whatever name it is asked for."""

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
                return _Counted(await self._connect(address, port), self._max_bytes)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _Counted(await self._connect(self._addresses[-1], port), self._max_bytes)


class _Counted(AsyncNetworkStream):
    """A stream that brings at most so many bytes."""

    def __init__(self, stream: AsyncNetworkStream, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise httpcore.ReadError("it sends more than any image may have")
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
        return _Counted(inner, self._left)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
