"""Sources of text; a name always gives the same text."""

from pathlib import Path

import pytest

from trainyard_trainer.data.corpus import STDLIB_BYTES, load_text
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


def test_a_mounted_config_map(tmp_path: Path) -> None:
    """Kubernetes shows files as links into a hidden directory, which must not be read twice."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "input").write_text("text")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "input").symlink_to("..data/input")
    assert load_text(str(tmp_path)) == "text"


def test_line_ends_are_kept_alike_on_all_machines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n")
    assert load_text(str(path)) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist here; give a text file, a directory or glob"),
        ("empty.txt", b"", "is empty"),
        ("binary.txt", b"abc\xff\xfe", r"is not UTF-8 text \(byte 3\)"),
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
