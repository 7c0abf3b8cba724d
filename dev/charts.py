"""Package both charts for a release, with images of the registry that the release is pushed to.

python -m dev.charts REGISTRY/PATH DIRECTORY

In the repository the charts name images without a registry (trainyard/operator), because only a
release has one. Prints the packages' paths; `helm push PACKAGE oci://...` publishes one.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dev.version import CHARTS, REPO, VersionError, check

_IMAGE = re.compile(r"^( *repository: )trainyard/(?=(?:operator|trainer|serving)$)", re.MULTILINE)


def package(registry: str, directory: Path, helm: str = "helm") -> list[Path]:
    """Write one .tgz for each chart into `directory`.

    Raises VersionError if the charts' versions disagree, CalledProcessError if helm fails.
    """
    version = check()
    directory.mkdir(parents=True, exist_ok=True)
    packages = []
    for path in CHARTS:
        with tempfile.TemporaryDirectory() as folder:
            chart = Path(folder) / path.parent.name
            shutil.copytree(REPO / path.parent, chart)
            values = chart / "values.yaml"
            values.write_text(_IMAGE.sub(rf"\g<1>{registry.rstrip('/')}/", values.read_text()))
            command = [helm, "package", str(chart), "--destination", str(directory)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        packages.append(directory / f"trainyard-{path.parent.name}-{version}.tgz")
    return packages


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(*package(arguments[0], Path(arguments[1])), sep="\n")
    except VersionError as error:
        print(f"charts: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError:
        print(
            "charts: helm is not on the PATH; `. .cluster/env` adds the one of make cluster",
            file=sys.stderr,
        )
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode  # helm has printed why
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
