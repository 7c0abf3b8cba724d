"""Checks on a GPU that the trainer and the servers are right, and measures how fast and how big.

    python -m tests.gpu [--device cpu] [--small] [--only NAME ...] [--output FILE] [--wheels DIR]

Prints one table; the exit status is 1 if a row failed. Needs torch, transformers and no network.
docs/contribute/gpu.md says how to run it.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.gpu.checkout import add_to_path, missing, use_checkout

if TYPE_CHECKING:
    from tests.gpu.rows import Row
    from tests.gpu.setting import Check, Setting


def checks() -> "dict[str, Check]":
    """What is checked, in this order, by name."""
    from tests.gpu import faults, quickstart, serving, throughput, training

    return {
        "losses": training.losses,
        "compile": training.compiling,
        "resume": training.resuming,
        "move": training.moving,
        "hang": faults.hanging,
        "memory-error": faults.running_out,
        "gpu-errors": faults.broken_kernels,
        "quickstart": quickstart.quickstart,
        "throughput": throughput.throughput,
        "memory": throughput.peak_memory,
        "classify": serving.classifying,
        "embed": serving.embedding,
        "generate": serving.generating,
    }


def perform(check: "Check", setting: "Setting") -> "list[Row]":
    """The rows of a check; an error is a row that failed, after those before it."""
    from tests.gpu.rows import Row

    rows: list[Row] = []
    try:
        for row in check(setting):
            rows.append(row)
            setting.say(f"{row.result}: {row.what}: {row.measured}".rstrip(": "))
    except (Exception, SystemExit) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        rows.append(Row("the check itself", words[:500], "no error", False))
    return rows or [Row("the check itself", "no rows", "some", False)]


def main() -> int:
    options = _options()
    if options.wheels:
        add_to_path(options.wheels)
    if absent := missing():
        version = ".".join(platform.python_version_tuple()[:2])
        sys.exit(
            "not everything is installed here; where there is a network: pip install --target DIR"
            f" --python-version {version} --only-binary :all: {shlex.join(absent)}; then give DIR"
            " with --wheels"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        use_checkout(folder / "installed")
        # Shared by all runs: each would take half a minute to make the same kernels.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "kernels")
        import torch

        if options.device == "cuda" and not torch.cuda.is_available():
            sys.exit(
                "PyTorch finds no GPU here; --device cpu --small runs the same program on the CPU"
            )
        return run(options, folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models: minutes on two cores")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the checks")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as JSON, too")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="made by pip install --target")
    return parser.parse_args()


def run(options: argparse.Namespace, folder: Path) -> int:
    """Perform the checks that are asked for; `folder` for their files. Returns the exit status."""
    from tests.gpu.setting import Setting

    chosen = checks()
    if unknown := [name for name in options.only or () if name not in chosen]:
        sys.exit(f"--only {' '.join(unknown)}: there is {', '.join(chosen)}")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    setting = Setting(options.device, options.small, folder, say)
    about = _about(options)
    table: dict[str, list[Row]] = {}
    try:
        for name in options.only or chosen:
            say(f"== {name}")
            table[name] = perform(chosen[name], setting)
            rows = [row for each in table.values() for row in each]
            about["seconds"] = round(time.monotonic() - began)
            about["rows"], about["failed"] = len(rows), sum(row.passed is False for row in rows)
            if options.output:  # after every check: whoever limits the time gets what there is
                _write(table, about, options.output)
    finally:
        setting.close()
    _show(table, about)
    return 1 if about["failed"] else 0


def _about(options: argparse.Namespace) -> dict[str, object]:
    """The machine and the versions that the figures are of."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {
        "device": gpu or "cpu",
        "small": options.small,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _write(table: "dict[str, list[Row]]", about: dict[str, object], output: Path) -> None:
    lines = [
        {"check": name, **vars(row), "result": row.result}
        for name, rows in table.items()
        for row in rows
    ]
    output.write_text(json.dumps(about | {"table": lines}, indent=2) + "\n")


def _show(table: "dict[str, list[Row]]", about: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table("check", "what", "measured", "expected", "result")
    for name, rows in table.items():
        for number, row in enumerate(rows):
            cells = ["" if number else name, row.what, row.measured, row.expected, row.result]
            drawn.add_row(*map(Text, cells), style="red" if row.passed is False else None)
        drawn.add_section()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(drawn)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()))


if __name__ == "__main__":
    sys.exit(main())
