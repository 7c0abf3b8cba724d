"""The command line: python3 -m dev.images build [--push] [--load], or lock."""

from __future__ import annotations

import argparse
import os
import sys

from dev.cluster.backend import choose as choose_cluster
from dev.cluster.errors import ClusterError
from dev.cluster.preflight import BUILDERS
from dev.cluster.settings import Settings

from . import lock
from .build import IMAGES, Job, build
from .builder import choose


def main() -> int:
    """Run one command; errors that a user can cause are one line."""
    options = _parser().parse_args()
    if options.command == "lock":
        return lock.main()
    try:
        job = Job(
            builder=choose(options.tool),
            prefix=options.prefix.rstrip("/"),
            tag=options.tag,
            base=options.base,
            names=tuple(options.image) or IMAGES,
        )
        cluster = choose_cluster(Settings()) if options.load else None
        if cluster is not None:  # before minutes of building, not after them
            cluster.check_load(job.images())
        for image in build(job):
            if options.push:
                job.builder.push(image)
        if cluster is not None:
            cluster.load(job.images(), job.builder.tool)
    except ClusterError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("images: interrupted; run the same command again to finish", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    port = os.environ.get("TRAINYARD_REGISTRY_PORT", "5051")
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
        default=os.environ.get("TRAINYARD_REGISTRY", f"localhost:{port}/trainyard"),
        help="registry and path before the image's name (TRAINYARD_REGISTRY; %(default)s)",
    )
    options.add_argument(
        "--tool", default="", choices=BUILDERS, help="default: the first of them that works"
    )
    options.add_argument(
        "--base",
        default="",
        help="a Python 3.11 image with venv; 'debian': made here from Debian's packages; "
        "default: the public Python image where it can be pulled, otherwise debian",
    )
    options.add_argument("--push", action="store_true", help="then push them to their registry")
    options.add_argument("--load", action="store_true", help="then load them into the cluster")
    return parser


if __name__ == "__main__":
    sys.exit(main())
