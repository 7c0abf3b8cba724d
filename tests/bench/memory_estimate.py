"""The memory that `trainyard estimate` expects beside what real ranks take, for every recipe.

    python -m tests.bench.memory_estimate

Prints a Markdown table: MiB of the rank that takes most, on this machine's CPUs.
"""

import argparse
import tempfile
from pathlib import Path

from tests.support.trainer import memory

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="recipes whose name has this in it")
    only = parser.parse_args().only
    print("| run | strategy | ranks | checkpointing | precision | estimated | measured | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = memory.measuring_server(folder)
        for run, settings in memory.write_data(folder).items():
            if only not in run:
                continue
            for number, (strategy, ranks, checkpointing, precision) in enumerate(MODES):
                config = memory.small(settings, ranks)
                config |= {"activation_checkpointing": checkpointing}
                recipe = run.partition(" ")[0]
                mode = ranks, strategy, precision
                own = folder / f"{run} {number}"
                own.mkdir()
                found = memory.measured(server, own, recipe, config, *mode)
                expected = memory.estimated(recipe, config, *mode)
                word = "yes" if checkpointing else "no"
                print(
                    f"| {run} | {strategy} | {ranks} | {word} | {precision} |"
                    f" {expected / MIB:.1f} | {found / MIB:.1f} | {expected / found:.3f} |",
                    flush=True,
                )
        server.close()


MODES: list[tuple[memory.Mode, int, bool, str]] = [
    ("ddp", 1, False, "fp32"),
    ("ddp", 1, True, "fp32"),
    ("ddp", 1, False, "bf16"),
    ("ddp", 2, False, "fp32"),
    ("ddp", 2, True, "fp32"),
    ("fsdp", 1, False, "fp32"),
    ("fsdp", 2, False, "fp32"),
    ("fsdp", 2, True, "fp32"),
    ("fsdp", 2, False, "bf16"),
]

if __name__ == "__main__":
    main()
