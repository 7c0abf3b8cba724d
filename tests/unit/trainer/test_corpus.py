"""Sources of text; a name always gives the same text."""

from pathlib import Path

import pytest

from trainyard_trainer.data.corpus import STDLIB_BYTES, load_text, read_text
from trainyard_trainer.errors import ConfigError


def test_the_standard_library_is_plain_python() -> None:
    text = load_text("stdlib")
    assert len(text) == STDLIB_BYTES
    assert text == load_text("stdlib")
    assert text.isascii()
    assert text.count("def ") > 5000


def test_files_of_a_directory_are_joined_in_order(tmp_path: Path) -> None:
    for name, content in (("b.txt", "B"), ("a.txt", "A"), ("c.jpg", "\xff"), (".hidden.txt", "H")):
        (tmp_path / name).write_text(content, encoding="latin-1")
    assert load_text(str(tmp_path)) == "AB"
    assert load_text(str(tmp_path / "*.txt")) == "AB"
    assert load_text(str(tmp_path / "a.txt")) == "A"


def test_what_is_read_and_left_out_is_told(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.jpg", "d.json", ".hidden"):
        (tmp_path / name).write_text("12345")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/e.txt").write_text("678")
    text, about = read_text(str(tmp_path))
    assert text == "1234512345"
    assert about == (
        "10 characters of 2 files; left out: c.jpg, d.json (not named .txt, .md, .py, .text),"
        f" more/ (a glob such as {tmp_path}/**/*.txt reads folders, too)"
    )
    assert read_text(f"{tmp_path}/**/*.txt") == ("12345678", "8 characters of 2 files")
    assert read_text(str(tmp_path / "a.txt"))[1] == "5 characters of 1 file"
    assert read_text("stdlib")[1] == f"{STDLIB_BYTES:,} characters"


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8-sig")
    assert load_text(str(tmp_path)) == "a.txtb.txt"


def test_a_mounted_config_map(tmp_path: Path) -> None:
    """Kubernetes shows files as links into a hidden directory, which must not be read twice."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "input").write_text("text")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "input").symlink_to("..data/input")
    assert read_text(str(tmp_path)) == ("text", "4 characters of 1 file")


def test_line_ends_are_the_same_on_all_machines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n")
    assert load_text(str(path)) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist here; give a text file, a directory or glob"),
        ("empty.txt", b"", "is empty"),
        ("binary.txt", b"abc\xff\xfe", r"is not UTF-8 text \(byte 3\)"),
        ("late.txt", "\ufeff".encode() + b"ab\r\n" * 2**19 + b"\xff", r"\(byte 2097155\)"),
        ("*.nothing", None, "does not exist here"),
    ],
)
def test_text_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_text(str(tmp_path / name))


def test_a_directory_without_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no text files"):
        load_text(str(tmp_path))
