"""Data is prepared once, by concurrent and by killed processes too."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import patience
from tests.patience import until
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data.cache import Array, cache_dir, cached, cached_parts
from trainyard_trainer.errors import DiskFullError

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


PARTS = """
import os
import sys
import numpy as np
from trainyard_trainer.data.cache import cached_parts

def make(i):
    with open(sys.argv[1], "a") as file:
        file.write(f"{i} {os.environ['RANK']}\\n")
    if i == int(sys.argv[2]):  # until it is killed
        print("making", flush=True)
        sys.stdin.read()
    return np.full(1000, i)

print([int(part[0]) for part in cached_parts(["0", "1", "2", "3"], make, "numbers")])
"""


def test_ranks_share_the_parts_and_make_those_of_a_killed_one(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def start(rank: int, waits_in: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PARTS, str(log), str(waits_in)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
        )

    killed = start(1, 3)
    assert killed.stdout
    assert killed.stdout.readline() == "making\n"
    other = start(0, -1)
    until(lambda: "1 0" in log.read_text(), "the other rank works too")
    assert "3 0" not in log.read_text()
    killed.kill()
    killed.communicate(timeout=patience.SECONDS)
    assert other.communicate(timeout=patience.SECONDS)[0] == "[0, 1, 2, 3]\n"
    assert log.read_text().splitlines() == ["2 1", "3 1", "0 0", "1 0", "3 0"]


def test_a_killed_process_leaves_nothing_behind() -> None:
    cache_dir().mkdir(parents=True)
    (cache_dir() / ".numbers.npy.some-node-7.tmp").write_bytes(b"half of the numb")
    assert cached("numbers", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert sorted(path.name for path in cache_dir().iterdir()) == ["numbers.lock", "numbers.npy"]


def test_a_damaged_file_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    cached("numbers", lambda: np.arange(1000))
    (path,) = cache_dir().glob("*.npy")
    whole = path.read_bytes()
    for place in (0, 130, 4000, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cached("numbers", lambda: np.arange(1000)).tolist() == list(range(1000))
        assert path.read_bytes() == whole
        assert capsys.readouterr().err == f"warning: {path} is damaged and is made again\n"
    for size in (0, 3, 64, 500, len(whole) - 4, len(whole) - 1):
        os.truncate(path, size)
        assert cached("numbers", lambda: np.arange(1000)).tolist() == list(range(1000))
    assert not cached("numbers", lambda: pytest.fail("made again")).flags.writeable


def test_any_number_of_parts_needs_no_file_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(number) for number in range(200)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        cached_parts(names, lambda i: np.full((2, 3), i), "numbers")
        parts = cached_parts(names, lambda _: pytest.fail("made again"), "numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert all(np.array_equal(part, np.full((2, 3), i)) for i, part in enumerate(parts))
    assert not any(part.flags.writeable for part in parts)
    assert capsys.readouterr().err == ""


def test_a_whole_file_that_cannot_be_opened_is_not_made_again() -> None:
    cached("numbers", lambda: np.arange(3))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            cached("numbers", lambda: pytest.fail("made again"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("made", [np.zeros((3, 0), np.int8), np.asfortranarray(np.eye(3)[:2])])
def test_arrays_of_every_form(made: Array) -> None:
    for _ in range(2):
        found = cached("form", lambda: made)
        assert (found.dtype, found.tolist()) == (made.dtype, made.tolist())


def test_without_a_writable_directory_there_is_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file where the directory should be")
    for _ in range(2):
        assert cached("numbers", lambda: np.arange(3)).tolist() == [0, 1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {cache_dir()} can't be written (Not a directory): every process prepares all of"
        " the data at every start, and keeps it in memory"
    )


def test_a_full_disk_is_an_error_that_names_the_size() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"File too large; it needs about 3.8 MiB: free"):
            cached_parts(["0", "1"], lambda _: np.zeros(250_000), "numbers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in cache_dir().iterdir()] == ["0.lock"]
    assert cached("0", lambda: np.arange(3)).tolist() == [0, 1, 2]
