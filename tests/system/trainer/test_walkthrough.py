"""The walkthrough does what it says, and its page shows what it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import patience
from trainyard_api.run import TrainingRun

TOP = Path(__file__).parents[3]
SCRIPT = TOP / "examples" / "walkthrough" / "train.py"
PAGE = TOP / "docs" / "learn" / "data-parallelism.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("walkthrough")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What two real processes under torchrun print."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(SCRIPT)],
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", "TRAINYARD_RUN_DIR": "out"},
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def ranks(output: str, step: int) -> list[str]:
    """What ranks 0 and 1 said in a numbered step."""
    lines = output.partition(f"{step}. ")[2].splitlines()[1:3]
    assert [line[:11] for line in lines] == ["   rank 0: ", "   rank 1: "]
    return [line[11:] for line in lines]


def test_two_processes_start_alike_see_different_data_and_end_alike(
    output: str, folder: Path
) -> None:
    assert len(set(ranks(output, 1))) == 2  # two processes
    assert "every rank gave its rank + 1, and now has 3" in output
    before, after = zip(*(line.split(" -> ") for line in ranks(output, 3)), strict=True)
    assert len(set(before)) == 2
    assert len(set(after)) == 1
    first, second = (set(re.findall(r"\d+", line)) for line in ranks(output, 4))
    assert first.isdisjoint(second)
    assert "used [500, 500] samples, 1000 different ones" in output
    trained = {line.split()[1] for line in ranks(output, 6)}
    assert len(trained) == 1
    assert trained.isdisjoint(after)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert losses[-1] < losses[0] / 10
    assert (folder / "out" / "walkthrough.pt").is_file()
    assert output.rstrip().endswith(f"all have read it: {list(trained) * 2}")


def test_its_page_shows_what_it_prints(output: str) -> None:
    def without_numbers(text: str) -> list[str]:
        return [re.sub(r"[0-9a-f]{8}|[\d.]+", "#", line).strip() for line in text.splitlines()]

    block = PAGE.read_text().split("```\n")[1]
    assert without_numbers(block) == without_numbers(output.replace("out/", ""))


def test_it_is_short_and_a_run() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 120
    run = TrainingRun.model_validate(yaml.safe_load(SCRIPT.with_name("run.yaml").read_text()))
    assert run.spec.command == [str(SCRIPT.relative_to(TOP))]
