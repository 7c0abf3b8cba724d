"""The course's scripts do what the chapters say, and print what the chapters show."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import patience

TOP = Path(__file__).parents[3]
SCRIPTS = TOP / "examples" / "learn"
CHAPTERS = TOP / "docs" / "learn"


def torchrun(folder: Path, script: str, *flags: str, ranks: int = 2) -> tuple[int, str]:
    """Exit status and output of a script, run by real processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", str(SCRIPTS / f"{script}.py"), *flags],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience.SECONDS,
    )
    return ended.returncode, ended.stdout


def blocks(chapter: str) -> list[list[str]]:
    """The output that a chapter shows: its fenced blocks without a language."""
    parts = re.split(r"^```", (CHAPTERS / f"{chapter}.md").read_text(), flags=re.MULTILINE)
    return [part[1:].splitlines() for part in parts[1::2] if part.startswith("\n")]


def missing(shown: Iterable[str], output: str) -> list[str]:
    """Lines of a block that were not printed. Numbers may differ, and `...` is anything."""
    printed = output.splitlines()
    return [
        line
        for line in shown
        if line.strip() != "..." and not any(_pattern(line).search(each) for each in printed)
    ]


VARIABLE = {
    r"\.\.\.": ".*",
    r"\b0x[0-9a-f]+\b": "0x[0-9a-f]+",
    r"\b[0-9a-f]{8}\b": "[0-9a-f]{8}",  # a hash of weights
    r"\d[\d,.]*(?:e[-+]?\d+)?": r"\d[\d,.]*(?:e[-+]?\d+)?",
}


def _pattern(line: str) -> re.Pattern[str]:
    parts = re.split(f"({'|'.join(VARIABLE)})", line.strip())
    return re.compile("".join(_expression(part) for part in parts))


def _expression(part: str) -> str:
    found = (regex for shown, regex in VARIABLE.items() if re.fullmatch(shown, part))
    return next(found, re.sub(r"(\\ )+", r"\\ +", re.escape(part)))


def test_shown_lines_are_compared_but_for_numbers() -> None:
    shown = ["rank 0: weights 83aae633, loss 1e-06 of [1.0, 2,000.5] ...", "..."]
    assert missing(shown, "  rank 1: weights 00000001, loss 2e-07 of [3.5, 4.0] and more") == []
    assert missing(shown, "rank 1: weights 00000001, gain 2e-07 of [3.5, 4.0]") == shown[:1]


def test_the_ring_adds_up_and_sends_what_the_formula_says(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "ring", ranks=4)
    assert status == 0, output
    assert missing(blocks("all-reduce")[0], output) == []
    assert output.count("[1111.0, 1111.0, 1111.0, 1111.0]") == 4
    assert output.count("sent 6.0 MB for a tensor of 4.0 MB") == 4
    differences = re.findall(r"at most (\S+);", output)
    assert len(differences) == 4
    assert all(float(each) < 1e-4 for each in differences)


def test_tensors_of_different_sizes_end_the_all_reduce(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "ring", "--break")
    assert status != 0
    assert missing(blocks("all-reduce")[1], output) == []


def test_three_ways_of_training_have_the_same_losses(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "three_ways")
    assert status == 0, output
    assert missing(blocks("ddp-dataparallel-fsdp")[0], output) == []
    alone, ddp, fsdp = (
        line.partition("loss ")[2].partition("  ")[0] for line in output.splitlines()
    )
    assert alone == ddp == fsdp
    first, last = alone.split()[0], alone.split()[-1]
    assert float(last) < float(first) / 2
    held = [[int(n) for n in each.split(",")] for each in re.findall(r"rank \[(.*)\]", output)]
    assert held[0] == held[1]
    assert sum(held[2]) == held[0][0]


def test_a_block_without_gradients_stops_ddp(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "three_ways", "--break")
    assert status != 0
    assert missing(blocks("ddp-dataparallel-fsdp")[1], output) == []


def test_sharding_saves_what_the_arithmetic_says(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "what_lies_where")
    assert status == 0, output
    assert missing(blocks("sharding")[0], output) == []
    count = int(output.split()[0].replace(",", "")) / 1e6
    for name, per_parameter in (("DDP", 16), ("ZeRO-1", 12), ("FSDP", 8)):
        (row,) = [line.split() for line in output.splitlines() if line.startswith(name)]
        assert float(row[-1]) == pytest.approx(per_parameter * count, rel=0.01), name


def test_collecting_on_one_rank_only_hangs(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "what_lies_where", "--break")
    assert status != 0
    # Which of the two operations of gloo times out is a matter of chance.
    shown = [line for line in blocks("sharding")[1] if not line.startswith("[rank")]
    assert missing(shown, output) == []
    assert "Timed out waiting 5000ms" in output


def weights(folder: Path, *flags: str) -> str:
    status, output = torchrun(folder, "resume", *flags)
    assert status == 0, output
    return output.partition("weights ")[2].strip()


def killed(folder: Path) -> None:
    status, output = torchrun(folder, "resume", "--kill")
    assert status != 0
    assert "exitcode  : -9" in output


def test_a_killed_run_ends_with_the_same_bits_unless_it_forgets_something(tmp_path: Path) -> None:
    whole = weights(tmp_path)
    killed(tmp_path)
    assert weights(tmp_path) == whole
    others = set()
    for forgotten in ("optimizer", "random", "position"):
        killed(tmp_path)
        others.add(weights(tmp_path, "--forget", forgotten))
    assert len(others) == 3
    assert whole not in others


def test_a_missing_rank_is_found_by_its_stack_and_by_name(tmp_path: Path) -> None:
    status, output = torchrun(tmp_path, "hang", ranks=3)
    assert status == 0, output
    assert missing(blocks("hangs")[0], output) == []
    status, output = torchrun(tmp_path, "hang", "--break", ranks=3)
    assert status != 0
    assert missing(blocks("hangs")[1], output) == []


def test_speedup_is_measured_for_a_large_and_for_a_tiny_batch(tmp_path: Path) -> None:
    alone = []
    for index, flags in enumerate(([], ["--break"])):
        status, output = torchrun(tmp_path, "speedup", *flags)
        assert status == 0, output
        # Whether two ranks are faster depends on the machine and its load.
        shown = [line for line in blocks("scaling")[index] if "Amdahl" not in line]
        assert missing([line for line in shown if "slower" not in line], output) == []
        assert "by Amdahl's law: sigma" in output or output.endswith("slower than one rank\n")
        alone.append(float(re.findall(r"^1 rank: +([\d.]+) ms", output, re.MULTILINE)[0]))
    assert alone[1] < alone[0] / 2


def test_without_torchrun_a_script_says_how_to_start_it(tmp_path: Path) -> None:
    for script in sorted(SCRIPTS.glob("*.py")):
        ended = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path
        )
        assert ended.returncode == 1, script.name
        assert ended.stderr.startswith("start this script with: torchrun"), script.name


def test_every_script_is_in_the_course() -> None:
    course = (CHAPTERS / "README.md").read_text()
    for script in SCRIPTS.glob("*.py"):
        assert f"learn/{script.name}" in course
    for chapter in CHAPTERS.glob("*.md"):
        assert chapter.name == "README.md" or f"]({chapter.name})" in course
