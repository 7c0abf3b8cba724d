"""A corpus of text as token ids: tokenised in parts, once, by the process that needs them first."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.trainer.bpe import bpe_folder
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.data import corpus, tokens
from trainyard_trainer.data.cache import cache_dir
from trainyard_trainer.data.corpus import Text
from trainyard_trainer.data.tokenizers import BPETokenizer
from trainyard_trainer.data.tokens import load_tokens
from trainyard_trainer.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/run"))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PART_PIECES", 4)
    monkeypatch.setattr(corpus, "_CHUNK", 2**16)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return BPETokenizer(str(bpe_folder(_lines(2000), tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each call of the tokenizer."""
    calls: list[int] = []
    encode_all = BPETokenizer.encode_all

    def counted(self: BPETokenizer, texts: list[str], end: int | None) -> npt.NDArray[np.integer]:
        calls.append(len(texts))
        return encode_all(self, texts, end)

    monkeypatch.setattr(BPETokenizer, "encode_all", counted)
    return calls


def _lines(count: int) -> str:
    return "".join(f"This is line number {i}, and it ends here.\n" for i in range(count))


def test_parts_have_the_tokens_of_the_whole_text(bpe: BPETokenizer, tmp_path: Path) -> None:
    text = _lines(14_000)
    (tmp_path / "1.txt").write_text(text[:234_567])  # in the middle of a word
    (tmp_path / "2.txt").write_text(text[234_567:])
    made, about = load_tokens(str(tmp_path), "text", bpe)
    assert about == f"{len(text):,} characters of 2 files"
    assert len(list((cache_dir() / "text").glob("*.npy"))) == 3
    assert made.read(0, len(made)).tolist() == bpe.encode(text)


def test_a_text_that_grows_keeps_its_parts(
    bpe: BPETokenizer, tmp_path: Path, encoded: list[int]
) -> None:
    path = tmp_path / "log.txt"
    path.write_text(_lines(14_000))
    load_tokens(str(path), "text", bpe)
    assert encoded == [4, 4, 2]
    load_tokens(str(path), "text", bpe)
    assert encoded == [4, 4, 2]
    path.write_text(_lines(16_000))
    load_tokens(str(path), "text", bpe)
    assert encoded[3:] == [3]


def test_a_text_larger_than_memory(bpe: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text(_lines(100_000))
    tracemalloc.start()
    try:
        load_tokens(str(path), "text", bpe)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_a_text_that_changes_while_it_is_read(
    bpe: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("before\n" * 99)
    chunks = Text.chunks

    def changed(self: Text) -> Iterator[str]:
        yield from chunks(self)
        path.write_text("after\n" * 99)

    monkeypatch.setattr(Text, "chunks", changed)
    with pytest.raises(ConfigError, match=r"text\.txt has changed while it was read"):
        load_tokens(str(path), "text", bpe)
    assert not list((cache_dir() / "text").glob("*.npy"))


def test_rows_without_text_are_counted(bpe: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n{"text": null}\n{"text": "two"}\n' * 1500)
    for _ in range(2):
        made, about = load_tokens(str(path), "text", bpe)
        assert about == "6,000 rows of 1 file; left out: 3,000 rows without a text"
        once = [*bpe.encode("one"), bpe.eos_id, *bpe.encode("two"), bpe.eos_id]
        assert made.read(0, len(made)).tolist() == once * 1500
