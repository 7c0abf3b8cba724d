"""`make demo`: trains the quickstart on this machine, serves it, and times each phase.

A quickstart that is there already may be the user's: it is not deleted, but resumed and served.
"""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINYARD = Path(sys.executable).with_name("trainyard")
RUN = "quickstart"
PROMPT = "def "


def main(started: float) -> int:
    """Run the phases; `started`: when make started, in seconds since the epoch."""
    console = Console()
    seconds = {"set up": time.time() - started}
    for phase, command in (
        ("train", ["run", str(EXAMPLES / "quickstart.yaml")]),
        ("serve and answer", ["serve", RUN, "--port", "0", "--prompt", PROMPT]),
    ):
        console.rule(f"trainyard {' '.join(command)}")
        begin = time.monotonic()
        code = subprocess.run([TRAINYARD, *command], check=False).returncode
        seconds[phase] = time.monotonic() - begin
        if code:
            return code

    table = Table("phase", "seconds", title="make demo")
    for phase, took in seconds.items():
        table.add_row(phase, f"{took:.1f}")
    table.add_row("total", f"{sum(seconds.values()):.1f}")
    console.print(table)
    console.print(
        f"To train it again: [bold].venv/bin/trainyard delete {RUN}[/bold], then make demo."
    )
    console.print(
        f"Next: [bold].venv/bin/trainyard serve {RUN}[/bold] prints the address of a page to try"
        " the model; README.md continues with Kubernetes."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else time.time()))
