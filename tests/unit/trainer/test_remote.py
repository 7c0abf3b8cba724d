"""Rows of a bucket of a real S3-compatible server, and of as much of the Hub as that needs: read in
parts, never a wrong one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from tests.support.trainer.bucket import NAME, Bucket, bucket
from tests.support.trainer.hub import COMMIT, files_in, hub
from tests.support.trainer.ranks import ROOT
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data.rows import Rows
from trainyard_trainer.errors import ConfigError, HubUnreachableError

LONG = 30_000  # characters of a text: a shard has several of the blocks that are read at once
TEXTS = [f"{row} " + f"{row * 7919}" * (LONG // 8) for row in range(600)]
FOLDER = f"s3://{NAME}/data"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/.one"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def write(folder: Path, suffix: str) -> Path:
    """A train split of two shards, and something else."""
    folder.mkdir()
    for shard, rows in enumerate((range(400), range(400, 600))):
        path = folder / f"train-0000{shard}-of-00002{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": TEXTS[row]}) + "\n" for row in rows))
        else:
            table = pa.table({"text": [TEXTS[row] for row in rows]})
            parquet.write_table(table, path, row_group_size=150, compression="none")
    (folder / "notes.txt").write_text("not read")
    return folder


def rows_of(source: str, column: str = "text") -> Rows:
    return Rows("dataset", source, "train", [column])


def read_all(rows: Rows) -> list[str]:
    blocks = (rows.read(at, min(at + 50, rows.num_rows)) for at in range(0, rows.num_rows, 50))
    return [text for block in blocks for text in block["text"].to_pylist()]


def failure(kind: type[Exception], source: str = FOLDER) -> str:
    with pytest.raises(kind) as caught:
        read_all(rows_of(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_rows_are_those_of_the_same_files_here(server: Bucket, tmp_path: Path, suffix: str) -> None:
    folder = write(tmp_path / "data", suffix)
    server.upload(folder, "data")
    rows = rows_of(FOLDER)
    assert read_all(rows) == TEXTS == read_all(rows_of(str(folder)))
    assert rows.read(390, 410)["text"].to_pylist() == TEXTS[390:410]
    assert rows.about.startswith("600 rows of 2 files, ")
    assert rows.about.endswith("MiB, streamed; left out: notes.txt (not named train or train-*)")
    assert max(size for _, size in server.read) <= 2**22
    assert {path.partition("?")[0] for path, _ in server.read} == {
        f"/{NAME}/data/train-0000{shard}-of-00002{suffix}" for shard in (0, 1)
    }
    assert rows_of(FOLDER).digest == rows.digest
    one = f"{FOLDER}/train-00001-of-00002{suffix}"
    assert read_all(rows_of(one)) == TEXTS[400:]
    server.put(
        f"data/train-00001-of-00002{suffix}",
        (folder / f"train-00000-of-00002{suffix}").read_bytes(),
    )
    assert rows_of(FOLDER).digest != rows.digest


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_of_any_kind_are_read_as_here(server: Bucket, tmp_path: Path, mark: bytes) -> None:
    """Rows larger than a block, empty lines, columns of later blocks, types that change."""
    long = [{"text": "short"}, {"text": "long\n" * 600_000, "n": 1}, {"text": "last", "late": 2}]
    kinds = [{"text": "x" * 5000, "n": row} for row in range(300)] + [{"text": "x", "n": None}]
    for rows, column in ((long, "text"), (long, "late"), (kinds, "n"), (kinds, "text")):
        lines = "\n\n".join(json.dumps(row) for row in rows)
        (tmp_path / "rows.jsonl").write_bytes(mark + lines.encode())
        server.put("rows.jsonl", mark + lines.encode())
        here = rows_of(str(tmp_path / "rows.jsonl"), column)
        there = rows_of(f"s3://{NAME}/rows.jsonl", column)
        assert there.schema == here.schema
        assert there.read(0, len(rows)).to_pylist() == here.read(0, len(rows)).to_pylist()
    changed = [{"text": "x" * 5000, "n": row} for row in range(300)] + [{"text": "x", "n": "y"}]
    server.put("rows.jsonl", "\n".join(json.dumps(row) for row in changed).encode())
    with pytest.raises(
        ConfigError, match=r"cannot be read: JSON parse error: Column\(/n\) changed"
    ):
        rows_of(f"s3://{NAME}/rows.jsonl", "n")
    server.put("rows.jsonl", b"")
    with pytest.raises(ConfigError, match="cannot be read: Empty JSON file"):
        rows_of(f"s3://{NAME}/rows.jsonl", "n")


END = """
import sys
from tests.unit.trainer.test_remote import rows_of

rows = rows_of(sys.argv[1])
rows.read(0, 1)
sys.exit(7)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_process_may_end_while_it_reads(server: Bucket, tmp_path: Path, suffix: str) -> None:
    server.upload(write(tmp_path / "data", suffix), "data")
    command = [sys.executable, "-c", END, FOLDER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_shard_must_not_change_while_it_is_read(
    server: Bucket, tmp_path: Path, suffix: str
) -> None:
    server.upload(write(tmp_path / "data", suffix), "data")
    name = f"train-00001-of-00002{suffix}"
    content = (tmp_path / "data" / name).read_bytes()
    rows, again = rows_of(FOLDER), rows_of(FOLDER)
    server.read.clear()

    def change() -> bool:
        """Once one part of it has been read."""
        if not any(name in path for path, _ in server.read):
            return True
        server.put(f"data/{name}", content.replace(b"1", b"2"))
        return False

    server.before = change
    message = (
        f"config.dataset: {FOLDER}: {name} was changed while it was read; start the run again when"
        " it is complete"
    )
    for each in (rows, again):  # now it changes while it is read; before it is opened again
        with pytest.raises(ConfigError) as caught:
            read_all(each)
        assert str(caught.value) == message
        assert server.before is None


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_what_breaks_off_is_read_again(server: Bucket, tmp_path: Path, suffix: str) -> None:
    server.upload(write(tmp_path / "data", suffix), "data")
    rows = rows_of(FOLDER)
    server.read.clear()
    server.cuts = 3
    assert read_all(rows) == TEXTS
    assert server.cuts < 0
    server.cuts = 1_000_000
    message = failure(HubUnreachableError)
    assert message.startswith(f"config.dataset: {FOLDER}: train-0000")
    assert "the bucket can't be reached: " in message


def test_what_is_missing_is_named(
    server: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.upload(write(tmp_path / "data", ".parquet"), "data")
    server.put("other/test.jsonl", b"{}")
    where = "config.dataset: s3://"
    assert failure(ConfigError, "s3://") == f"{where} names no bucket; write s3://BUCKET/PATH"
    for source in ("s3://none/data", f"s3://{NAME}/none", f"{FOLDER}/none.parquet"):
        assert failure(ConfigError, source) == f"config.dataset: {source}: no such bucket or path"
    assert failure(ConfigError, f"s3://{NAME}/other") == (
        f"{where}{NAME}/other has no train.parquet, train.csv or train.jsonl"
    )
    server.put("csv/train.csv", b"text\nx\n")
    assert failure(ConfigError, f"s3://{NAME}/csv") == (
        f"{where}{NAME}/csv: train.csv: csv can't be streamed; make it parquet or jsonl"
    )
    rows = rows_of(FOLDER)
    server.fs.rm(f"{NAME}/data/train-00001-of-00002.parquet")
    with pytest.raises(ConfigError, match=r"train-00001-of-00002.parquet: no such bucket or path"):
        read_all(rows)
    server.put("data/train-00001-of-00002.parquet", b"PAR1 cut off")
    assert "cannot be read: " in failure(ConfigError)
    server.status = 403
    assert failure(ConfigError).endswith("access denied: the credentials may not list or read it")
    server.status = 503
    assert "the bucket can't be reached: " in failure(HubUnreachableError)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no AWS credentials: set AWS_ACCESS_KEY_ID" in failure(ConfigError)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert failure(ConfigError).endswith("needs the package s3fs; install trainyard[trainer]")


def test_an_unreachable_bucket_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
    assert "the bucket can't be reached: " in failure(HubUnreachableError)


READ = """
import sys
from tests.unit.trainer.test_remote import TEXTS, read_all, rows_of

digests = set()
for source in sys.argv[1:]:
    rows = rows_of(source)
    assert read_all(rows) == TEXTS
    digests.add(rows.digest)
print(rows.about, len(digests))
"""


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_rows_of_the_hub_are_read_from_one_commit(tmp_path: Path, suffix: str) -> None:
    """In another process: the Hub's library reads the address of the Hub when it is imported."""
    files = files_in(write(tmp_path / "data", suffix))
    repository = {f"data/{name}": content for name, content in files.items()}
    sources = [f"hf://datasets/me/rows{of}/data" for of in ("", "@main", f"@{COMMIT}")]
    with hub({"datasets/me/rows": repository}) as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", READ, *sources]
        out = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
        assert out.returncode == 0
        assert out.stdout.startswith("600 rows of 2 files, ")
        assert out.stdout.endswith(" 1\n")
        read = [path for path in server.asked if "/resolve/" in path]
        assert len(read) >= 3 * 4
        assert all(f"/resolve/{COMMIT}/data/train-" in path for path in read)
