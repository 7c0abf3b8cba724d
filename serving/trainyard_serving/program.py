"""A server as a program: its settings, its port, its log, and one line for what a user can mend."""

import argparse
import logging
import os
import sys
from dataclasses import dataclass
from importlib import import_module

from trainyard_serving.settings import ServerSettings, read_settings


@dataclass(frozen=True)
class App:
    """A server. Its module is imported only once its settings are known to be right."""

    help: str
    settings: type[ServerSettings]
    module: str
    create: str


def prepare_logging() -> None:
    """Log to standard error, one line per record."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Libraries' records under their own names stay; ONNX Runtime's quantiser writes 50 lines
    # about itself under none.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)


def serve_app(program: str, app: App, args: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit status. Raises SettingsError."""
    settings = read_settings(app.settings, args, os.environ)
    from trainyard_serving.server import ListenError, listen, serve

    try:
        sock = listen(settings.host, settings.port)
    except ListenError as error:
        return fail(program, str(error))
    create = getattr(import_module(app.module), app.create)
    serve(create(settings), sock, settings.drain_seconds)
    return 0


def fail(program: str, message: str) -> int:
    """Print one line that says what to change; returns exit status 1."""
    print(f"{program}: {message}", file=sys.stderr)
    return 1
