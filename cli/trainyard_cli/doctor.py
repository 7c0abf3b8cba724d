"""`trainyard doctor`: checks this machine and the cluster, and prints what to change."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from trainyard_api import __version__
from trainyard_cli import machine_checks
from trainyard_cli.cluster_checks import check_cluster
from trainyard_cli.machine_checks import Finding

CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    machine_checks.check_python,
    machine_checks.check_extras,
    machine_checks.check_torch,
    machine_checks.check_torchrun,
    machine_checks.check_ports,
    machine_checks.check_home,
    machine_checks.check_memory,
    check_cluster,
)
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "not checked": "dim"}


def doctor(output: str | None) -> int:
    """Print the findings (output "json": as JSON); returns 1 if there is a problem, else 0."""
    with ThreadPoolExecutor(len(CHECKS)) as executor:
        results = [executor.submit(check) for check in CHECKS]
        findings = [finding for result in results for finding in result.result()]
    if output == "json":
        print(json.dumps({"version": __version__, "checks": [*map(asdict, findings)]}, indent=2))
    else:
        _print(findings)
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    """One line per finding, and one for what to do about it; coloured on a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        console.print(
            Text.assemble(
                (f"{finding.level:<11}", COLOURS[finding.level]),
                f"  {finding.check:<{width}}  {finding.message}",
            )
        )
        if finding.action:
            console.print(Text(f"{'':<11}  {'':<{width}}  -> {finding.action}", style="bold"))
    counts = {level: sum(f.level == level for f in findings) for level in ("problem", "warning")}
    summary = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items()]
    console.print(Text(", ".join(summary)))
