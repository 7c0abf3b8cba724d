"""The tables of docs/operate/troubleshooting.md, from the corpus of faults in tests/faults.

They stand between `<!-- faults: FILE -->` and `<!-- end -->`; the rest of the page is by hand.
"""

import re
from pathlib import Path

from tests.faults.corpus import FILES, Row, rows

PAGE = Path(__file__).parents[1] / "operate" / "troubleshooting.md"
_TABLE = re.compile(r"(<!-- faults: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page() -> str:
    """The page with its tables as they are now. Raises ValueError if it lacks one."""
    text = PAGE.read_text()
    found = [name for _, name, _ in _TABLE.findall(text)]
    if found != [*FILES]:
        raise ValueError(f"{PAGE}: has the tables {found}, not {[*FILES]}")
    return _TABLE.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", text)


def table(file: str) -> str:
    """The rows of one file of the corpus."""
    head = "\n| what you see | why | what to do |\n|---|---|---|\n"
    return head + "".join(f"| {_seen(row)} | {row.why} | {row.do} |\n" for row in rows(file)) + "\n"


def _seen(row: Row) -> str:
    """What the user sees: the reason and the message, as they are printed."""
    if row.where == "pods":
        return row.see
    if row.where == "log":
        return f"in the log: `{row.see}`"
    if row.where == "condition":
        return f"condition `{row.reason}`: `{row.see}`"
    return f"`{row.reason}`: `{row.see}`"
