"""`trainyard init`: copies an example manifest from the package to the current directory."""

import re
from pathlib import Path
from typing import Any

import yaml

from trainyard_api.run import KIND
from trainyard_local.manifest import COMMANDS
from trainyard_local.store import UserError

# Needs files that are not part of the package; its comments say which.
NOT_STANDALONE = {"shakespeare"}


def list_examples() -> str:
    """The names of the examples, each with the first sentence of its comment."""
    names = _names()
    width = max(map(len, names))
    return "\n".join(f"{name:<{width}}  {_summary(name)}" for name in names)


def write_example(name: str) -> str:
    """Write NAME.yaml to the current directory; returns what to do next. Raises UserError."""
    names = _names()
    if name not in names:
        raise UserError(f"no example named {name!r} (examples: {', '.join(names)})")
    path = Path(f"{name}.yaml")
    text = _read(name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} already exists: move it away first") from None
    manifest: dict[str, Any] = yaml.safe_load(text)
    lines = [f"wrote {path}"]
    if manifest["kind"] != KIND or manifest["spec"].get("numNodes", 1) == 1:
        lines.append(f"  next    trainyard {COMMANDS[manifest['kind']]} {path}")
    lines.append(f"  cluster kubectl apply -f {path}")
    return "\n".join(lines)


def examples_directory() -> Path:
    """The examples: part of the wheel, or the folder of the checkout that is installed."""
    package = Path(__file__).parent
    packaged = package / "examples"
    return packaged if packaged.is_dir() else package.parents[1] / "examples"


def _names() -> list[str]:
    names = {path.stem for path in examples_directory().glob("*.yaml")} - NOT_STANDALONE
    if not names:
        raise UserError(
            f"the examples are missing from {examples_directory()}: reinstall trainyard"
        )
    return sorted(names, key=lambda name: (name != "quickstart", name.startswith("study-"), name))


def _read(name: str) -> str:
    """The manifest. Its comments name other examples; here they are not in a directory."""
    text = (examples_directory() / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace("examples/", "")


def _summary(name: str) -> str:
    """The first sentence of the comment at the top."""
    comment = []
    for line in _read(name).splitlines():
        if not line.removeprefix("#").strip():
            break
        comment.append(line.removeprefix("#").strip())
    return re.split(r"\. |\.$", " ".join(comment))[0]
