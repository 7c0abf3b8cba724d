"""The command line: python3 -m dev.cluster up, down, status, load, node-lost, purge."""

from __future__ import annotations

import argparse
import os
import sys

from .backend import choose
from .errors import ClusterError
from .preflight import BUILDERS
from .settings import Settings


def main() -> int:
    """Run one command; errors that a user can cause are one line."""
    options = _parser().parse_args()
    try:
        backend = choose(Settings(), options.context, options.backend)
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
    except ClusterError as error:
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
        default=os.environ.get("TRAINYARD_CONTEXT", ""),
        help="use the cluster of this kubectl context instead (TRAINYARD_CONTEXT)",
    )
    which.add_argument(
        "--backend",
        choices=("kind", "native"),
        default=os.environ.get("TRAINYARD_CLUSTER", ""),
        help="default: kind where a Docker engine answers, otherwise native (TRAINYARD_CLUSTER)",
    )
    parser = argparse.ArgumentParser(
        prog="python3 -m dev.cluster", description="A real Kubernetes on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[which])

    command("up", "start the cluster, or repair it")
    command("down", "remove the cluster; what was built stays cached")
    command("purge", "remove the cluster and the cache")
    command("status", "what runs; exits 0 when all of it does")
    load = command("load", "load local images into every node")
    load.add_argument("image", nargs="+", metavar="IMAGE")
    load.add_argument(
        "--tool", default="", choices=BUILDERS, help="default: the first that has the image"
    )
    lost = command("node-lost", "switch a node off, as a power cut would")
    lost.add_argument("node", metavar="NODE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
