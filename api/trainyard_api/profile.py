"""Traces of a run's steps: where they are, and how a running trainer is asked for one."""

import re

DIRECTORY = "profiles"  # in the run's directory
# Beside it, written by whoever asks: the number of steps. The trainer's rank 0 removes it.
REQUEST = "profile-request"
MAX_STEPS = 10  # a trace has every operation of each of them
TRACE = re.compile(rf"{DIRECTORY}/step-\d{{1,15}}-\d{{1,15}}/rank-\d{{1,9}}\.json\.gz")
VIEWER = "https://ui.perfetto.dev"


def trace_path(first: int, last: int, rank: int) -> str:
    """The trace of steps `first` to `last`, relative to the run's directory."""
    return f"{DIRECTORY}/step-{first}-{last}/rank-{rank}.json.gz"


def known_trace(path: object) -> str | None:
    """The path of a trace as a report has it; None if it is anything else."""
    return path if isinstance(path, str) and TRACE.fullmatch(path) else None
