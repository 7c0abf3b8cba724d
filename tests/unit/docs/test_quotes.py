"""What the pages quote outside tables of messages is printed: by our code, PyTorch or the system.

Inline code of two words or more is a message unless it is a command, a setting or Python. In
printed output, the lines that begin with an error or a warning are compared by their fixed words.
"""

import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.docs.test_links import ROOT, markdown_files
from tests.unit.docs.test_messages import is_printed, literals

PAGES = [
    page
    for page in markdown_files()
    # The reference is generated from the code, and the tables of faults from the corpus.
    if page.suffix == ".md" and page.parent.name != "reference"
]
CODE = re.compile(
    r"[={}\[\]+]|->|--|^\W"  # Python, YAML, JSON
    r"|^[\w./-]+: [\w\"-]+$"  # a setting
    r"|^(GET|POST|Authorization:) |[\w/]:$|^[\w.]+\("  # a request, a statement, a call
)
COMMANDS = {
    *("docker", "generate", "git", "go", "helm", "kill", "kind", "kubectl", "make", "pip"),
    *(
        "py-spy",
        "pytest",
        "python",
        "ss",
        "sudo",
        "tensorboard",
        "torchfrtrace",
        "torchrun",
        "trainyard",
    ),
    *("from", "if", "with", "nc", "storage:", "namespaces", "time()", "max", "tests.bench"),
}
# Printed by programs that are not installed here, as the page says that it met them.
OTHERS = {
    "unable to apply caps: operation not permitted": "runc",
    "NCCL error": "NCCL, which the CPU build of PyTorch lacks",
    "unhandled system error": "NCCL",
    "invalid usage": "NCCL",
    "Watchdog caught collective operation timeout": "PyTorch's CUDA build",
    "exitcode : -9": "torchrun, from a format",
    "exitcode : -6": "torchrun, from a format",
    "terminate called without an active exception": "the C++ runtime",
    "arxiv-demo, 2 GPUs": "a name that the reader gives",
    "name: what it trains": "a form of docstring",
}
PRINTED = re.compile(r"^(?:\w*Error|warning|error): .*")
# What differs from case to case: parentheses, numbers, names and paths.
VARIES = re.compile(r"\([^)]*\)|(?:step )?\S*\d\S*|\S*[/_.]\S+|\.\.\.|[:;,()'\"]|\b[A-Z_]{2,}\b")


def blocks(page: Path) -> tuple[str, list[str]]:
    """A page's running text, and the lines of its indented and fenced blocks."""
    text, inside, fenced = [], [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            inside.append(line.strip())
        else:
            text.append(line)
    return "\n".join(text), inside


def quotes(page: Path) -> Iterator[str]:
    """The messages in a page's running text."""
    if page.name == "troubleshooting.md" and page.parent.name == "operate":
        return  # its tables have tests of their own
    for quote in re.findall(r"`([^`]+)`", blocks(page)[0]):
        words = quote.split()
        message = " ".join(words)
        if len(words) > 1 and words[0] not in COMMANDS and not CODE.search(message):
            yield message


def fixed_words(line: str) -> list[str]:
    """The runs of two or more words of a message that are the same in every case."""
    runs = (" ".join(run.split()) for run in VARIES.sub("\0", line).split("\0"))
    return [run for run in runs if " " in run]


def torch_prints(message: str) -> bool:
    """Whether the fixed words of a message are in PyTorch's library or its distributed package."""
    folder = Path(torch.__file__).parent
    wanted = {run.encode() for run in fixed_words(message) or [message]}
    files = [*folder.glob("lib/libtorch_*.so"), *(folder / "distributed").rglob("*.py")]
    for path in files:
        if path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                wanted = {run for run in wanted if data.find(run) < 0}
        if not wanted:
            return True
    return False


@pytest.fixture(scope="module")
def texts() -> set[str]:
    return set(literals())


def test_quotes_in_running_text_are_printed(texts: set[str]) -> None:
    system = {os.strerror(code) for code in errno.errorcode}
    unknown = {
        f"{page.relative_to(ROOT)}: {quote}"
        for page in PAGES
        for quote in quotes(page)
        if quote not in OTHERS
        and quote not in system
        and not is_printed(quote, texts)
        and not torch_prints(quote)
    }
    assert unknown == set()


def test_errors_and_warnings_in_output_have_the_words_of_the_code(texts: set[str]) -> None:
    unknown = {
        f"{page.relative_to(ROOT)}: {run} ({line})"
        for page in PAGES
        for line in blocks(page)[1]
        if PRINTED.match(line)
        for run in fixed_words(line.partition(": ")[2])
        if not is_printed(run, texts)
    }
    assert unknown == set()


def test_every_exception_to_the_rule_is_needed() -> None:
    quoted = {quote for page in PAGES for quote in quotes(page)}
    assert OTHERS.keys() - quoted == set()


def test_reasons_and_kinds_that_pages_name_exist() -> None:
    """Words such as `ProgressUnknown`: also those of Kubernetes and PyTorch that the code names."""
    files = [*ROOT.glob("*/trainyard_*/**/*.py"), *ROOT.glob("charts/**/*.yaml")]
    files += [*ROOT.glob("sdk/**/*.py"), *(ROOT / "tests" / "support").rglob("*.py")]
    files += [*(ROOT / "dev").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    known = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    named = {
        word: page.name
        for page in PAGES
        for word in re.findall(r"`([A-Z][a-z]+(?:[A-Z]\w*)+)`", page.read_text())
    }
    assert len(named) > 20
    assert {word: page for word, page in named.items() if word not in known} == {}


def test_a_wrong_quote_is_found(texts: set[str]) -> None:
    assert fixed_words("rank 1 (vm, pid 7) is stopped: nothing heard for 20 s; last seen in") == [
        "is stopped",
        "nothing heard for",
        "last seen in",
    ]
    assert not is_printed("nothing heard for", texts)
    assert is_printed("no heartbeat for", texts)
    assert not torch_prints("Watchdog found no collective at all")
    assert torch_prints("Timed out waiting ...ms for recv operation to complete")
