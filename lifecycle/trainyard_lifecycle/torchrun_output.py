"""Parses the output of torchrun and its ranks: errors by rank, failure table, error file."""

import json
import re

from trainyard_lifecycle.plan import RankExit

# torchrun --tee writes `[default1]:` (the local rank) before each line; torch adds `[rank3]:`.
_LOCAL_RANK = re.compile(r"^\[[a-z_-]+(\d+)\]:")
_PREFIX = re.compile(r"^(?:\[[a-z_-]+\d+\]: ?)+")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::.*)?$")
_SINGLE_LINE_ERROR = re.compile(r"^(?:rank \d+: )?([A-Za-z_]\w*(?:Error|Exception): .+)$")
NCCL_LINES = 4  # torch's, the kind of error, "Last error:" and NCCL's own words
_TABLE_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)")
_TABLE_RANK = re.compile(r"^\s*rank\s*:\s*(\d+) \(local_rank: (\d+)\)")


def parse_failures(log: str) -> list[RankExit]:
    """The ranks of torchrun's newest failure table: its "Root Cause" first, then the others."""
    before, heading, root = log.rpartition("Root Cause")
    if not heading:
        return []
    # The table: a title, "Failures:" with the other ranks, and the root cause at its end.
    others = before.rpartition("\nFailures:")[2]
    return [*_parse_ranks(root), *_parse_ranks(others)]


def _parse_ranks(table: str) -> list[RankExit]:
    failures: list[RankExit] = []
    rank: re.Match[str] | None = None
    for line in table.splitlines():
        rank = _TABLE_RANK.match(line) or rank
        code = _TABLE_EXIT.search(line)
        if rank and code:
            failures.append(RankExit(int(rank[1]), int(rank[2]), int(code[1])))
            rank = None
    return failures


def parse_error_file(text: str) -> str | None:
    """The exception in torchelastic's error file: {"message": {"message": "ValueError: ..."}}."""
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(message, dict):
        message = message.get("message", "")
    lines = [line for line in str(message).splitlines() if line.strip()]
    if not lines or "ChildFailedError" in lines[0]:
        return None
    # A traceback ends with the exception; a plain message begins with it.
    return lines[-1].strip() if lines[0].startswith("Traceback") else _with_nccl_detail(lines)


def split_by_local_rank(log: str) -> dict[int | None, list[str]]:
    """A log's lines by the local rank that wrote them; torchrun's own are under None."""
    streams: dict[int | None, list[str]] = {}
    for line in log.splitlines():
        match = _LOCAL_RANK.match(line)
        rank = int(match.group(1)) if match else None
        streams.setdefault(rank, []).append(_PREFIX.sub("", line))
    return streams


def strip_prefixes(log: str) -> list[str]:
    """A log's lines without the ranks before them."""
    return [_PREFIX.sub("", line) for line in log.splitlines()]


def find_errors(lines: list[str]) -> list[str]:
    """What ended a rank: the exceptions of its tracebacks, else its single-line errors."""
    return _find_traceback_errors(lines) or find_single_line_errors(lines)


def find_single_line_errors(lines: list[str]) -> list[str]:
    """Errors that the trainer prints without a traceback: `rank 1: HangError: ...`."""
    return [match[1] for line in lines if (match := _SINGLE_LINE_ERROR.match(line))]


def find_abort(lines: list[str]) -> str:
    """What native code said before it aborted: its C++ exception, such as NCCL's watchdog's."""
    found = [line.partition("what():")[2] for line in lines if "what():" in line]
    return found[-1].strip() if found else ""


def _find_traceback_errors(lines: list[str]) -> list[str]:
    """Last lines of the Python tracebacks, without torchrun's own."""
    errors: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            inside = False
            if _EXCEPTION.match(line) and "ChildFailedError" not in line:
                errors.append(_with_nccl_detail(lines[number : number + NCCL_LINES]))
    return errors


def _with_nccl_detail(lines: list[str]) -> str:
    """An exception's line; NCCL's own words, some lines below torch's, are added to it."""
    first = lines[0].strip()
    if "NCCL error" not in first:
        return first
    after = iter(lines[1:NCCL_LINES])
    detail = next((next(after, "") for line in after if line.startswith("Last error")), "")
    return f"{first}: {detail.strip()}" if detail.strip() else first
