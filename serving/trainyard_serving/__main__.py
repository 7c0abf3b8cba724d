"""`python -m trainyard_serving APP`: serves a model; `verify` only checks one."""

import argparse
import logging
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from trainyard_serving.dashboard.settings import DashboardSettings
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.places import newest_good, place_of
from trainyard_serving.settings import (
    ClassifySettings,
    GenerateSettings,
    ServerSettings,
    SettingsError,
    Source,
    VisionSettings,
    add_flags,
    read_settings,
)


@dataclass(frozen=True)
class App:
    """A server. Its module is imported only once its settings are known to be right."""

    help: str
    settings: type[ServerSettings]
    module: str
    create: str


APPS = {
    "classify": App(
        "the classes of texts",
        ClassifySettings,
        "trainyard_serving.classify.app",
        "create_classify_app",
    ),
    "generate": App(
        "OpenAI-compatible text completions",
        GenerateSettings,
        "trainyard_serving.generate.app",
        "create_generate_app",
    ),
    "vision": App(
        "answers to questions about pictures, by a model on SGLang",
        VisionSettings,
        "trainyard_serving.vision.app",
        "create_vision_app",
    ),
    "dashboard": App(
        "a page about runs, scaling, cost and served models; it changes nothing",
        DashboardSettings,
        "trainyard_serving.dashboard.app",
        "create_dashboard_app",
    ),
}


def main() -> int:
    """Exit status: 0 when all went well, 1 for what the user can mend (one line says what)."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Libraries' records under their own names stay; ONNX Runtime's quantiser writes 50 lines
    # about itself under none.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        return _verify(args) if args.command == "verify" else _serve(args)
    except SettingsError as error:
        return _fail(str(error))


def _verify(args: argparse.Namespace) -> int:
    try:
        model, refused = newest_good(place_of(read_settings(Source, args, os.environ)))
    except ModelUnavailableError as error:
        return _fail(str(error))
    for why in refused:
        print(f"trainyard_serving: refused: {why}", file=sys.stderr)
    if args.link:
        _link(Path(args.link), model.path)
    name = model.run if model.step is None else f"run {model.run}, step {model.step}"
    print(f"verified {model.path}: {name}, {model.digest}")
    return 0


def _link(link: Path, model: Path) -> None:
    """Make `link` lead to the model, whether or not it led somewhere before."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(model.resolve())
    new.replace(link)


def _serve(args: argparse.Namespace) -> int:
    app = APPS[args.command]
    settings = read_settings(app.settings, args, os.environ)
    from trainyard_serving.server import ListenError, listen, serve

    try:
        sock = listen(settings.host, settings.port)
    except ListenError as error:
        return _fail(str(error))
    create = getattr(import_module(app.module), app.create)
    serve(create(settings), sock, settings.drain_seconds)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainyard_serving",
        description="Serve a verified model. Every flag can also be set by the variable in [].",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, app in APPS.items():
        add_flags(commands.add_parser(name, help=app.help), app.settings)
    verify = commands.add_parser("verify", help="check a model's files and print its digest")
    add_flags(verify, Source)
    verify.add_argument(
        "--link", metavar="PATH", help="then make PATH a link to the model, for another program"
    )
    return parser


def _fail(message: str) -> int:
    print(f"trainyard_serving: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
