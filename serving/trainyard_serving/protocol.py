"""HTTP/1.1 on a connection: uvicorn's protocol, which here ignores upgrades and limits the time.

uvicorn limits only how long a connection may be idle after a response. Here every wait for a client
ends: for its first byte, for a request's headers, for the rest of a body that nobody reads, and for
reading its answer. The time for a body that is read is limited by `middleware.BodyLimit`, whose
answer has the app's form.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trainyard_serving.access import REQUEST_ID_HEADER, new_request_id

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
UNREAD_SECONDS = 300  # much: a slow reader's system reports what it has read in large steps only


class ServerConfig(uvicorn.Config):
    """uvicorn's settings, and the limits of `HttpProtocol`."""

    def __init__(
        self, app: Any, *, header_seconds: float, body_seconds: float, **options: Any
    ) -> None:
        super().__init__(app, http=HttpProtocol, ws="none", **options)
        self.header_seconds = header_seconds
        self.body_seconds = body_seconds


class HttpProtocol(HttpToolsProtocol):
    """A connection of a client."""

    config: ServerConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # "trailers" from the size of a chunk until its first byte, which the last one doesn't have.
        self._reading: Literal["nothing", "headers", "body", "trailers"] = "nothing"
        self._header_bytes = 0  # since the headers, or the trailers, began
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A client that reads nothing would keep its answer's place in the model's batch for ever.
        # The system ends its connection, also one that is being closed, once no byte of what was
        # written got through for this long. (macOS doesn't have this.)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            peer = transport.get_extra_info("socket")
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._refused:
            self.flow.pause_reading()  # `receive` of the request in progress has resumed it
            return
        if self._reading in ("headers", "trailers"):
            self._header_bytes += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP request")
            return
        what = self._reading
        if what in ("headers", "trailers") and self._header_bytes > MAX_HEADER_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, f"the {what} are larger than {MAX_HEADER_BYTES} bytes")

    def _parse(self, data: bytes) -> bytes:
        """Returns what is to be parsed next."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.parser.get_method() == b"CONNECT":
                self._refuse(HTTPStatus.NOT_IMPLEMENTED, "CONNECT: this server is not a proxy")
                return b""
            # The parser has skipped the body, as if another protocol followed (Java's HttpClient
            # asks for HTTP/2 in its first request). RFC 9110, 7.8: a server may ignore it.
            return self._headers_without_upgrade() + data[upgrade.args[0] :]
        return b""

    def _headers_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join([*lines, b"\r\n"])

    # The parser's callbacks, in their order.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = "headers"
        self._header_bytes = 0
        self._wait(self.config.header_seconds, self._headers_are_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        # As headers, trailers would replace or add to what the app has been told (RFC 9110, 6.5.1).
        if self._reading == "headers":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._reading = "body"
        self._stop_waiting()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._reading = "trailers"
        self._header_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._reading = "body"
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._reading = "nothing"
        super().on_message_complete()
        self._wait_for_client()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_client()

    # Waiting for the client.

    def _wait_for_client(self) -> None:
        """Limit the wait for its next request, or for the rest of a body that nobody reads."""
        if self._is_responding or self._reading == "headers":
            return
        rest_of_body = self._reading != "nothing"
        seconds = self.config.body_seconds if rest_of_body else self.config.timeout_keep_alive
        self._wait(seconds, self.transport.close)

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's own limit, which any byte ends: `_wait_for_client` has a stricter one."""

    @property
    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _headers_are_late(self) -> None:
        seconds = self.config.header_seconds
        message = f"the headers did not arrive within {seconds:g} s"
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer what no app should see, and close; with a response begun or due, only close."""
        self._refused = True
        self.flow.pause_reading()
        in_body = self._reading in ("body", "trailers")
        if in_body and self.cycle.response_complete:
            self.transport.close()
            return
        if self._is_responding:
            if not in_body or self.pipeline or self.cycle.response_started:
                self.cycle.keep_alive = False
                return
            # The app waits for a body that won't be complete: to it the client has left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = new_request_id()
        log.info("[%s] %d: %s", request_id, status, message)
        body = f"{message}\n".encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "content-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\n"
            f"{REQUEST_ID_HEADER}: {request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
