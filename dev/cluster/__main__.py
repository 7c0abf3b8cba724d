"""The command line: python3 -m dev.cluster up, down, status, load, node-lost, purge."""

from __future__ import annotations

import argparse
import sys

from .backends import choose
from .commands import UserError
from .preflight import BUILDERS
from .settings import load


def main() -> int:
    """Run one command; errors that a user can cause are one line."""
    options = _parser().parse_args()
    try:
        backend = choose(load(context=options.context, backend=options.backend))
        match options.command:
            case "up":
                backend.up()
            case "down":
                backend.down()
            case "purge":
                backend.purge()
            case "status":
                return 0 if backend.status() else 1
            case "load":
                backend.load(options.image, options.tool)
            case "node-lost":
                backend.node_lost(options.node)
    except UserError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"cluster: {error.filename} belongs to root: use sudo", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; run the same command again to finish", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "--context",
        default="",
        help="use the cluster of this kubectl context instead (TRAINYARD_CONTEXT)",
    )
    which.add_argument(
        "--backend",
        choices=("kind", "native"),
        default="",
        help="default: kind where a Docker engine answers, otherwise native (TRAINYARD_CLUSTER)",
    )
    parser = argparse.ArgumentParser(
        prog="python3 -m dev.cluster", description="A real Kubernetes on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[which])

    command("up", "start the cluster, or repair it")
    command("down", "remove the cluster; built programs and images stay cached")
    command("purge", "remove the cluster and the cache")
    command("status", "print which parts run; exits 0 when all of them do")
    load_images = command("load", "load local images into every node")
    load_images.add_argument("image", nargs="+", metavar="IMAGE")
    load_images.add_argument(
        "--tool", default="", choices=BUILDERS, help="default: the first that has the image"
    )
    lost = command("node-lost", "switch a node off, as a power cut would")
    lost.add_argument("node", metavar="NODE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
