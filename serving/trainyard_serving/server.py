"""Runs an app as a program: settings, log, port, and draining on SIGTERM."""

import argparse
import logging
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainyard_serving.access import add_request_id
from trainyard_serving.settings import ServerSettings, read_settings

if TYPE_CHECKING:  # imported slowly, and only once the settings are known to be valid
    from fastapi import FastAPI

    from trainyard_serving.protocol import ServerConfig

# Longer than proxies and load balancers keep a connection that is not in use (60 s, most of them):
# else one sends a request just as the server closes, and its client gets a 502.
KEEP_ALIVE_SECONDS = 75


class ListenError(Exception):
    """The server cannot listen on its address; the message is one line."""


@dataclass(frozen=True)
class App:
    """A server whose module is imported only once its settings are known to be valid."""

    help: str
    settings: type[ServerSettings]
    module: str
    create: str


def prepare_logging() -> None:
    """Log to standard error, one line per record."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(request)s%(message)s"))
    handler.addFilter(add_request_id)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # ONNX Runtime's quantiser logs 50 lines about itself to the root logger; other libraries use
    # loggers of their own, which this filter does not affect.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)


def serve_app(program: str, app: App, args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. Raises SettingsError."""
    settings = read_settings(app.settings, args)
    try:
        sock = listen(settings.host, settings.port)
    except ListenError as error:
        return fail(program, str(error))
    create = getattr(import_module(app.module), app.create)
    serve(create(settings), sock, settings)
    return 0


def fail(program: str, message: str) -> int:
    """Print one line that says what to change; returns exit status 1."""
    print(f"{program}: {message}", file=sys.stderr)
    return 1


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises ListenError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ListenError(f"{reason}: choose another with --host or --port") from None


def serve(app: "FastAPI", sock: socket.socket, settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress get `drain_seconds` to finish."""
    import uvicorn

    # uvicorn raises the signal again once it has drained: that is a successful end, status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"listening on http://{shown}:{port}", flush=True)
    config = server_config(app, settings, timeout_graceful_shutdown=settings.drain_seconds)
    uvicorn.Server(config).run(sockets=[sock])


def server_config(app: "FastAPI", settings: ServerSettings, **options: Any) -> "ServerConfig":
    """How uvicorn serves an app; tests change some `options`."""
    from trainyard_serving.protocol import ServerConfig

    return ServerConfig(
        app,
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        **{
            "access_log": False,  # `RequestLog` has one
            "log_config": None,
            "log_level": "warning",
            "server_header": False,
            "proxy_headers": False,  # no app uses the client's address
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            **options,
        },
    )


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
