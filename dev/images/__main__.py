"""The command line: python3 -m dev.images build, and python3 -m dev.images lock."""

from __future__ import annotations

import argparse
import sys

from dev.cluster.backends import choose as choose_cluster
from dev.cluster.commands import UserError
from dev.cluster.preflight import BUILDERS
from dev.cluster.settings import load as load_settings

from . import lock
from .build import IMAGES, Job, build
from .builder import choose


def main() -> int:
    """Run one command; errors that a user can cause are one line."""
    options = _parser().parse_args()
    try:
        if options.command == "lock":
            lock.write()
            return 0
        settings = load_settings(image_registry=options.prefix)
        job = Job(
            builder=choose(options.tool),
            prefix=settings.image_prefix,
            tag=options.tag,
            base=options.base,
            names=tuple(options.image) or IMAGES,
        )
        cluster = choose_cluster(settings) if options.load else None
        if cluster is not None:  # before minutes of building, not after them
            cluster.check_load(job.images())
        for image in build(job):
            if options.push:
                job.builder.push(image)
        if cluster is not None:
            cluster.load(job.images(), job.builder.tool)
    except UserError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("images: interrupted; run the same command again to finish", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m dev.images", description="Trainyard's images."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("lock", help="write requirements/*.txt again, with hashes")
    options = commands.add_parser("build", help="build the images")
    options.add_argument("image", nargs="*", metavar="IMAGE", help=f"default: {' '.join(IMAGES)}")
    options.add_argument("--tag", default="dev")
    options.add_argument(
        "--prefix",
        default="",
        help="registry and path before each image's name (TRAINYARD_REGISTRY; default: the "
        "registry of make cluster)",
    )
    options.add_argument(
        "--tool", default="", choices=BUILDERS, help="default: the first of them that works"
    )
    options.add_argument(
        "--base",
        default="",
        help="an image with Python 3.11 and venv, or 'debian' to make one from Debian packages; "
        "default: the public Python image where it can be pulled, otherwise debian",
    )
    options.add_argument("--push", action="store_true", help="then push them to their registry")
    options.add_argument("--load", action="store_true", help="then load them into the cluster")
    return parser


if __name__ == "__main__":
    sys.exit(main())
