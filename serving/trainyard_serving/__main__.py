"""`python -m trainyard_serving APP`: serves a model; `verify` only checks one."""

import argparse
import sys
from pathlib import Path

from trainyard_serving.embed.settings import EmbedSettings
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.locations import first_verified, location_of
from trainyard_serving.server import App, fail, prepare_logging, serve_app
from trainyard_serving.settings import (
    ClassifySettings,
    GenerateSettings,
    ModelSource,
    SettingsError,
    VisionSettings,
    add_flags,
    read_settings,
)

PROGRAM = "trainyard_serving"

APPS = {
    "classify": App(
        "the classes of texts",
        ClassifySettings,
        "trainyard_serving.classify.app",
        "create_classify_app",
    ),
    "embed": App(
        "embeddings of texts, as OpenAI's API gives them",
        EmbedSettings,
        "trainyard_serving.embed.app",
        "create_embed_app",
    ),
    "generate": App(
        "OpenAI-compatible text completions",
        GenerateSettings,
        "trainyard_serving.generate.app",
        "create_generate_app",
    ),
    "vision": App(
        "answers to questions about images, from a model on SGLang",
        VisionSettings,
        "trainyard_serving.vision.app",
        "create_vision_app",
    ),
}


def main() -> int:
    """Exit status: 0 on success, 1 for an error that the user can correct (one line says how)."""
    args = _parser().parse_args()
    prepare_logging()
    try:
        if args.command == "verify":
            return _verify(args)
        return serve_app(PROGRAM, APPS[args.command], args)
    except SettingsError as error:
        return fail(PROGRAM, str(error))


def _verify(args: argparse.Namespace) -> int:
    try:
        model, refused = first_verified(location_of(read_settings(ModelSource, args)))
    except ModelUnavailableError as error:
        return fail(PROGRAM, str(error))
    for reason in refused:
        print(f"{PROGRAM}: refused: {reason}", file=sys.stderr)
    if args.link:
        _link(Path(args.link), model.path)
    name = model.run if model.step is None else f"run {model.run}, step {model.step}"
    print(f"verified {model.path}: {name}, {model.digest}")
    return 0


def _link(link: Path, model: Path) -> None:
    """Make `link` point to the model, even if it pointed elsewhere before."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(model.resolve())
    new.replace(link)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Serve a verified model. Every flag can also be set by the variable in [].",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, app in APPS.items():
        add_flags(commands.add_parser(name, help=app.help), app.settings)
    verify = commands.add_parser("verify", help="verify a model's files and print its digest")
    add_flags(verify, ModelSource)
    verify.add_argument(
        "--link",
        metavar="PATH",
        help="then make PATH a symbolic link to the model, for another program",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
