"""Text is tokenised once, by concurrent and by killed processes too."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import patience
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data.cache import cache_dir, cached

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from trainyard_trainer.data.cache import cached

def make():
    with open(sys.argv[1], "a") as file:
        file.write("made\\n")
    if sys.argv[2:]:  # until somebody kills it
        print("making", flush=True)
        sys.stdin.read()
    return np.arange(200_000, dtype=np.uint16)

print(cached("numbers", make)[-1])
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))


def test_processes_that_ask_at_once_share_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = [sys.executable, "-c", PROGRAM, str(log)]
    first = subprocess.Popen(
        [*program, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin
    assert first.stdout
    assert first.stdout.readline() == "making\n"
    others = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first.stdin.close()  # the others may or may not wait by now: they must not make it again
    ends = [process.communicate(timeout=patience.SECONDS)[0] for process in others]
    assert first.stdout.read() == ends[0] == ends[1] == f"{199_999 % 65536}\n"
    assert first.wait(timeout=patience.SECONDS) == 0
    assert log.read_text() == "made\n"


def test_a_killed_process_does_not_block_the_next(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
    killed = subprocess.Popen(
        [*program, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout
    assert killed.stdout.readline() == "making\n"
    killed.kill()
    killed.wait(timeout=patience.SECONDS)
    made = cached("numbers", lambda: np.arange(5))
    assert made.tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_file_is_replaced() -> None:
    cached("numbers", lambda: np.arange(1000))
    (path,) = cache_dir().glob("*.npy")
    for size in (0, 64, 500):
        os.truncate(path, size)
        assert cached("numbers", lambda: np.arange(1000)).tolist() == list(range(1000))
    assert isinstance(cached("numbers", lambda: pytest.fail("made again")), np.memmap)


def test_without_a_writable_directory_there_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the directory should be")
    for _ in range(2):
        assert cached("numbers", lambda: np.arange(3)).tolist() == [0, 1, 2]
