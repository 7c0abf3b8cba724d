"""Messages that a page quotes are printed by the code.

A quoted message stands as `code` in the first column of a table whose first title is "message";
`...` stands for what differs from case to case. It must be (part of) a literal or an f-string.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = [*sorted(ROOT.glob("*/trainyard_*")), ROOT / "sdk" / "trainyard"]
FIELD = "\0"  # what an f-string or a format fills in
_FORMATTED = re.compile(r"%[sdrf]|%\.\d+[fg]|\{[^{}]*\}")


def quoted(page: Path) -> Iterator[str]:
    """The messages in a page's tables."""
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == "message":
            inside = True
        elif inside:
            yield from re.findall(r"`([^`]+)`", cells[0])


def literals() -> Iterator[str]:
    """Every string in the packages, with FIELD for its variable parts."""
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else FIELD
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield _FORMATTED.sub(FIELD, node.value)


def is_printed(message: str, texts: set[str]) -> bool:
    """Whether the message is one of the texts, or a part of one."""
    wanted = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
    return any(wanted.search(text) or _fills(text, message) for text in texts)


def _fills(text: str, message: str) -> bool:
    """Whether `message` is `text` with its variable parts filled in."""
    if FIELD not in text or len(text.replace(FIELD, "").strip()) < 8:
        return False
    pattern = ".+?".join(re.escape(part) for part in text.split(FIELD))
    return re.fullmatch(pattern, message, re.DOTALL) is not None


@pytest.fixture(scope="module")
def texts() -> set[str]:
    return set(literals())


@pytest.mark.parametrize(
    "page",
    [page for page in sorted((ROOT / "docs").rglob("*.md")) if any(quoted(page))],
    ids=lambda page: page.name,
)
def test_quoted_messages_are_printed(page: Path, texts: set[str]) -> None:
    assert [message for message in quoted(page) if not is_printed(message, texts)] == []


def test_troubleshooting_quotes_messages() -> None:
    """Besides its generated tables of faults, which docs/generate/troubleshooting.py describes."""
    assert len(list(quoted(ROOT / "docs/operate/troubleshooting.md"))) > 5


def test_a_message_that_nothing_prints_is_found(texts: set[str]) -> None:
    assert not is_printed("port in use by somebody", texts)
    assert is_printed(
        "... is stopped: no heartbeat for ... s",
        {f"{FIELD} is stopped: no heartbeat for {FIELD} s"},
    )
    assert is_printed("the 3 ranks have left", {f"the {FIELD} ranks have left"})
