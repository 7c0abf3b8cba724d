"""HTTP by hand, byte for byte, for what no client library sends."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import httpx

from tests import patience


@dataclass(frozen=True)
class Answer:
    """An answer as it arrived."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A connection to a server."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._file: IO[bytes] = peer.makefile("rb")

    def address(self) -> tuple[str, int]:
        """This end's, as the server sees it."""
        host, port = self._peer.getsockname()
        return host, port

    def send(self, data: bytes) -> None:
        self._peer.sendall(data)

    def answer(self) -> Answer:
        """The next answer; its body must have a length."""
        status = self._file.readline()
        assert status.startswith(b"HTTP/1.1 "), status
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        body = self._file.read(int(headers.get("content-length", 0)))
        return Answer(int(status.split()[1]), headers, body)

    def rest(self) -> bytes:
        """What still comes until the server closes the connection."""
        return self._file.read()


@contextmanager
def connected(client: httpx.Client) -> Iterator[Connection]:
    """A connection to the server that `client` talks to."""
    url = client.base_url
    address = (url.host, url.port or 80)
    with socket.create_connection(address, timeout=patience.SECONDS) as peer:
        yield Connection(peer)


def post(path: str, body: bytes, *headers: str, chunks: int = 0) -> bytes:
    """A request; with `chunks` its body is sent in so many."""
    kind = ["host: test", "content-type: application/json", *headers]
    if chunks:
        size = -(-len(body) // chunks)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        kind.append("transfer-encoding: chunked")
    else:
        sent = body
        kind.append(f"content-length: {len(body)}")
    return "\r\n".join([f"POST {path} HTTP/1.1", *kind, "", ""]).encode() + sent
