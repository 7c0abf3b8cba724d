"""Compare two local runs of one manifest, for a change of the trainer: losses and speed.

python -m dev.compare_runs BEFORE/runs/NAME AFTER/runs/NAME

Prints a Markdown table for the pull request. Exits with 1 when a loss differs.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOSSES = ("loss", "eval_loss")
ROWS = 12  # of a long run, some steps evenly spread are printed; all are compared


class Missing(Exception):
    """What keeps two runs from being compared, one line."""


def read(run: Path) -> tuple[dict[tuple[int, str], float], float]:
    """((step, name) -> loss, median samples per second) of a run's directory.

    A step that was trained twice counts with its newest value. Raises Missing without losses.
    """
    path = run / "data" / "metrics.jsonl"
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise Missing(f"{path}: not the metrics of a run: {error}") from None
    losses = {
        (record["step"], name): record[name]
        for record in records
        for name in LOSSES
        if isinstance(record.get(name), float)
    }
    speeds = [record["samples_per_second"] for record in records if "samples_per_second" in record]
    if not losses or not speeds:
        raise Missing(f"{path}: the run has logged no loss")
    return losses, statistics.median(speeds)


def compare(before: Path, after: Path) -> tuple[str, bool]:
    """(Markdown, whether every loss is the same float). Raises Missing."""
    (old, old_speed), (new, new_speed) = read(before), read(after)
    if old.keys() != new.keys():
        step, name = sorted(old.keys() ^ new.keys())[0]
        raise Missing(f"only one run has {name} of step {step}: run the same manifest twice")
    lines = ["| step | | before | after | difference |", "|---|---|---|---|---|"]
    keys = sorted(old)
    shown = keys[:: -(-len(keys) // ROWS)]
    for step, name in shown + keys[-1:] * (keys[-1] not in shown):
        was, now = old[step, name], new[step, name]
        lines.append(f"| {step} | {name} | {was:.6f} | {now:.6f} | {now - was:+.2e} |")
    differing = [key for key in keys if old[key] != new[key]]
    verdict = f"All {len(keys)} losses are the same, bit for bit."
    if differing:
        largest = max(abs(new[key] - old[key]) for key in differing)
        verdict = (
            f"{len(differing)} of {len(keys)} losses differ, first at step {differing[0][0]},"
            f" by at most {largest:.2e}."
        )
    speed = f"Samples per second (median): {old_speed:.1f} before, {new_speed:.1f} after"
    lines += ["", verdict, f"{speed} ({new_speed / old_speed - 1:+.1%})."]
    return "\n".join(lines), not differing


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        text, same = compare(Path(arguments[0]), Path(arguments[1]))
    except Missing as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
