"""Runs an app: takes the port at once, serves, and drains when told to stop."""

import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI


class ListenError(Exception):
    """The address cannot be listened on; the message is one line."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises ListenError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ListenError(f"{why}: choose another with --host or --port") from None


def serve(app: FastAPI, sock: socket.socket, drain_seconds: int) -> None:
    """Serve until SIGTERM or SIGINT; requests under way get `drain_seconds` to finish."""
    # uvicorn raises the signal again once it has drained: that is the good end, status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"listening on http://{shown}:{port}", flush=True)
    config = uvicorn.Config(
        app,
        access_log=False,  # /metrics counts requests; probes would fill the log
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is
        timeout_graceful_shutdown=drain_seconds,
    )
    uvicorn.Server(config).run(sockets=[sock])


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
