"""Rows are read from files in every format; what is missing is named."""

import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from trainyard_trainer.data.rows import label_names, load_rows
from trainyard_trainer.errors import ConfigError


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
        rows = load_rows("dataset", str(source), split, ["text"])
        assert rows.column_names == ["text"]
        return list(rows["text"].to_pylist())

    assert texts(folder) == ["a", "b\nc", "d"]
    assert texts(folder, "test") == ["e\nf"]
    assert texts(folder / "more.jsonl") == ["g"]


def test_the_classes_have_the_names_the_data_gives_them(folder: Path) -> None:
    rows = load_rows("dataset", str(folder), "train", ["text", "label"])
    assert label_names(rows, "label") is None
    features = {
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
        "text": {"_type": "Value"},
    }
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    for file in folder.glob("train-*"):
        parquet.write_table(parquet.read_table(file).replace_schema_metadata(note), file)
    rows = load_rows("dataset", str(folder), "train", ["label"])
    assert label_names(rows, "label") == ["no", "yes"]
    assert label_names(rows, "text") is None


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, split: str = "train", column: str = "text") -> str:
        with pytest.raises(ConfigError) as caught:
            load_rows("dataset", source, split, [column])
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
