"""Servers of this product in a thread of the test, and clients for them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tests import patience
from tests.patience import until
from trainyard_serving.generate.app import create_generate_app
from trainyard_serving.server import listen, server_config
from trainyard_serving.settings import GenerateSettings, ServerSettings


@contextmanager
def running(app: FastAPI, **settings: Any) -> Iterator[httpx.Client]:
    """`app` on a free port of this machine, in a thread, and a client for it.

    settings: of connections, which are not the app's.
    """
    sock = listen("127.0.0.1", 0)
    # Long limits, else a pause of this machine could end a connection under a request.
    options = {"timeout_keep_alive": int(patience.SECONDS), "timeout_graceful_shutdown": 1}
    options |= {name: settings.pop(name) for name in options if name in settings}
    values = {"header_seconds": patience.SECONDS, **settings}
    config = server_config(app, ServerSettings(**values), **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=patience.SECONDS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def send(client: httpx.Client, path: str, body: bytes, length: int | None = None) -> socket.socket:
    """A request whose answer is left to the caller; `length` is what it claims the body has."""
    url = client.base_url
    peer = socket.create_connection((url.host, url.port or 80), timeout=patience.SECONDS)
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    length = len(body) if length is None else length
    peer.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + body)
    return peer


@contextmanager
def serving(**settings: Any) -> Iterator[httpx.Client]:
    """A text generation server; the model may still be loading."""
    values: dict[str, Any] = {
        key: str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }
    values.setdefault("poll_seconds", 0.05)
    with running(create_generate_app(GenerateSettings(**values))) as client:
        yield client


@contextmanager
def loaded(**settings: Any) -> Iterator[httpx.Client]:
    """As `serving`, once the model is there."""
    with serving(**settings) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client
