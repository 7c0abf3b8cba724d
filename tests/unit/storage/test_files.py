"""Files replaced as a whole: after an error, after a kill, and with two writers at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainyard_storage.files import open_atomic, write_text_atomic


def test_a_text_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text_atomic(path, "old")
    write_text_atomic(path, "größer", durable=False)
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "epoch.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), open_atomic(path) as file:  # noqa: PT012
        file.write(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_content_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from trainyard_storage.files import open_atomic\n"
        "with open_atomic(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text_atomic(path, "new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_named_writers_of_one_file_do_not_collide(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    with open_atomic(path, writer="a") as one, open_atomic(path, writer="b") as other:
        one.write(b"a" * 9)
        other.write(b"b")
    assert path.read_bytes() == b"a" * 9, "the one that ended last, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    there: list[bool] = []
    fsync = os.fsync

    def note(file: int) -> None:
        there.append(path.exists())
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    write_text_atomic(path, "x")
    assert there == [False]
    write_text_atomic(path, "y", durable=False)
    assert there == [False]
