"""Rows are read from files in every format; what is missing is named."""

import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data.rows import Rows, label_names
from trainyard_trainer.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/.one"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"text": ["a", "b\nc", "d"], "label": [0, 1, 2]})
    parquet.write_table(table.slice(0, 2), tmp_path / "train-00000-of-00002.parquet")
    parquet.write_table(table.slice(2), tmp_path / "train-00001-of-00002.parquet")
    (tmp_path / "test.csv").write_text('text,label\n"e\nf",3\n')
    (tmp_path / "more.jsonl").write_text('{"text": "g", "label": 4}\n')
    return tmp_path


def test_every_form_is_read(folder: Path) -> None:
    def texts(source: Path, split: str = "train") -> list[str]:
        rows = Rows("dataset", str(source), split, ["text"])
        assert rows.schema.names == ["text"]
        texts = rows.read(0, rows.num_rows)["text"].to_pylist()
        assert rows.column("text").to_pylist() == texts
        for start in reversed(range(rows.num_rows)):
            for end in range(start + 1, rows.num_rows + 1):
                assert rows.read(start, end)["text"].to_pylist() == texts[start:end]
        return list(texts)

    assert texts(folder) == ["a", "b\nc", "d"]
    assert texts(folder, "test") == ["e\nf"]
    assert texts(folder / "more.jsonl") == ["g"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_row_may_be_larger_than_a_block(tmp_path: Path, mark: bytes) -> None:
    """pyarrow parses blocks of 1 MiB, and no row may be longer than that."""
    texts = ["short", "long\n" * 600_000, "last"]
    lines = "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_bytes(mark + lines.encode())
    rows = "".join(f'"{text}",1\n' for text in texts)
    (tmp_path / "rows.csv").write_bytes(mark + f"text,label\n{rows}".encode())
    for name in ("rows.jsonl", "rows.csv"):
        rows_of = Rows("dataset", str(tmp_path / name), "train", ["text", "label"])
        table = rows_of.read(0, 3)
        assert table["text"].to_pylist() == texts
        assert table["label"].to_pylist() == [1, 1, 1]
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}one cell\n")
    # pyarrow numbers the row unless it parses several blocks at once.
    error = r"cannot be read: CSV parse error: (Row #5: )?Expected 2 columns"
    with pytest.raises(ConfigError, match=error):
        Rows("dataset", str(tmp_path / "rows.csv"), "train", ["text"])


def test_what_is_read_and_left_out_is_told(folder: Path) -> None:
    (folder / "train2.csv").write_text("text,label\nz,1\n")
    (folder / "old").mkdir()
    assert Rows("dataset", str(folder), "train", ["text"]).about == (
        "3 rows of 2 files; left out: more.jsonl, old/, train2.csv (not named train or train-*)"
    )
    assert Rows("dataset", str(folder / "test.csv"), "test", ["text"]).about == "1 row of 1 file"


def test_the_classes_have_the_names_the_data_gives_them(folder: Path) -> None:
    rows = Rows("dataset", str(folder), "train", ["text", "label"])
    assert label_names(rows.schema, "label") is None
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "text": {"_type": "Value"},
    }
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    for file in folder.glob("train-*"):
        parquet.write_table(parquet.read_table(file).replace_schema_metadata(note), file)
    rows = Rows("dataset", str(folder), "train", ["label"])
    assert label_names(rows.schema, "label") == ["no", "yes"]
    assert label_names(rows.schema, "text") is None


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, split: str = "train", column: str = "text") -> str:
        with pytest.raises(ConfigError) as caught:
            Rows("dataset", source, split, [column])
        return str(caught.value).replace(str(folder), "DIR")

    assert refused(str(folder), column="body") == (
        "config.dataset: DIR has no column body; it has text, label"
    )
    assert refused(str(folder), "validation") == (
        "config.dataset: DIR has no validation.parquet, validation.csv or validation.jsonl"
    )
    assert "does not exist here" in refused(str(folder / "none"))
    (folder / "cut.parquet").write_bytes(b"PAR1")
    assert refused(str(folder / "cut.parquet")).startswith("config.dataset: DIR/cut.parquet cannot")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert refused("hub:nobody/nothing").startswith(
        "config.dataset: hub:nobody/nothing could not be loaded: "
    )


def test_a_column_has_one_type_in_the_whole_file(tmp_path: Path) -> None:
    """The first block, of 1 MiB, does not decide alone; nor does it hide a column."""
    titles: list[object] = [*range(300), "the last one"]
    rows = [{"title": title, "text": "a" * 5000} for title in titles]
    rows[-1] |= {"late": 1}
    (tmp_path / "rows.csv").write_text(
        "title,text\n" + "".join(f"{row['title']},{row['text']}\n" for row in rows)
    )
    assert Rows("dataset", str(tmp_path / "rows.csv"), "train", ["title"]).column(
        "title"
    ).to_pylist() == [str(title) for title in titles]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"title": 300, "text": "b", "late": 1}))
    late = Rows("dataset", str(tmp_path / "rows.jsonl"), "train", ["title", "late"])
    assert late.read(299, 301).to_pydict() == {"title": [299, 300], "late": [None, 1]}


def test_a_file_must_not_change_while_it_is_read(folder: Path) -> None:
    rows = Rows("dataset", str(folder / "more.jsonl"), "train", ["text"])
    (folder / "more.jsonl").write_text('{"text": "another", "label": 4}\n')
    with pytest.raises(ConfigError, match=r"more.jsonl was changed while it was read; start the"):
        rows.read(0, 1)
    again = Rows("dataset", str(folder / "more.jsonl"), "train", ["text"])
    assert again.digest != rows.digest
    assert again.column("text").to_pylist() == ["another"]


def test_files_of_a_split_have_the_same_columns(folder: Path) -> None:
    table = pa.table({"text": [1], "label": [2]})
    parquet.write_table(table, folder / "train-00001-of-00002.parquet")
    message = "the columns of its files differ: text string, and text int64"
    with pytest.raises(ConfigError, match=message):
        Rows("dataset", str(folder), "train", ["text"])
