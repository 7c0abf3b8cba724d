"""The command line: python3 -m dev.images build [--push], and python3 -m dev.images lock."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from . import lock
from .build import IMAGES, Job, build
from .tools import REPO, ImageError, builder


def main() -> int:
    """Run one command; errors that a user can cause are one line."""
    options = _parser().parse_args()
    if options.command == "lock":
        return lock.main()
    try:
        job = Job(
            tool=builder(options.tool),
            prefix=options.prefix.rstrip("/"),
            tag=options.tag,
            base=options.base,
            names=tuple(options.image) or IMAGES,
        )
        images = build(job)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("images: interrupted; run it again to go on", file=sys.stderr)
        return 130
    if options.load:
        command = [sys.executable, "-m", "dev.cluster", "load", *images]
        return subprocess.run(command, cwd=REPO, check=False).returncode
    return 0


def _parser() -> argparse.ArgumentParser:
    port = os.environ.get("TRAINYARD_REGISTRY_PORT", "5051")
    parser = argparse.ArgumentParser(
        prog="python3 -m dev.images", description="Trainyard's images."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("lock", help="write requirements/*.txt anew, with hashes")
    options = commands.add_parser("build", help="build the images")
    options.add_argument("image", nargs="*", metavar="IMAGE", help=f"default: {' '.join(IMAGES)}")
    options.add_argument("--tag", default="dev")
    options.add_argument(
        "--prefix",
        default=os.environ.get("TRAINYARD_REGISTRY", f"localhost:{port}/trainyard"),
        help="registry and path before the image's name (TRAINYARD_REGISTRY; %(default)s)",
    )
    options.add_argument("--tool", default="", choices=("docker", "podman", "buildah"))
    options.add_argument(
        "--base",
        default="",
        help="a Python 3.11 image with venv; 'debian': made here from Debian's packages; "
        "default: the public Python image where it can be pulled, otherwise debian",
    )
    options.add_argument(
        "--load", action="store_true", help="then make them known to the cluster's nodes"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
