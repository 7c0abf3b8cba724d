"""Why a worker ended, in one line, and whether trying again can help.

The evidence, strongest first: what Kubernetes says (lost node, eviction, OOM kill), the error JSON
that torchelastic leaves as last words, torchrun's failure table and the tracebacks in the log,
the exit code.
"""

import json
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from trainyard_api.job import EXIT_CONFIG
from trainyard_lifecycle.observed import Worker


@dataclass(frozen=True)
class Failure:
    """One worker's end. `cause` orders failures of a gang: the lowest is the root cause."""

    reason: str
    message: str
    retryable: bool
    cause: int
    worker: str = ""
    exit_code: int | None = None


# reason -> (cause, retryable). A gang's first death drags the others down, so a rank that only saw
# its peer disappear must never be named while any other explanation exists.
_CLASSES: dict[str, tuple[int, bool]] = {
    "ConfigError": (0, False),
    "UserException": (1, False),
    "OOMKilled": (2, True),
    "NodeLost": (3, True),
    "Evicted": (3, True),
    "Preempted": (3, True),
    "PodDeleted": (3, True),
    "Hang": (4, True),
    "Signal": (5, True),
    "ExitCode": (6, False),
    "PeerLost": (7, True),
    "Unknown": (8, True),
}
# Every reason of a failed attempt: those above, and what keeps a gang from starting or ends it.
REASONS = frozenset(_CLASSES) | {
    "StartTimeout",
    "DeadlineExceeded",
    "Image",
    "Volume",
    "Container",
    "Scheduling",
    "Creating",
    "Rejected",
}

_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "PreemptionByKubeScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
}

# What a rank says when a peer vanished or the network failed: a consequence, worth another try.
_PEER_LOST = re.compile(
    r"^ranklosterror|connection (closed|reset|refused)|broken pipe|dist(backend|network|store)error"
    r"|nccl error|ncclsystemerror|ncclremoteerror|rendezvous\w*error|socket timeout"
    r"|store.*timed? ?out"
    r"|\bgloo\b.*(timeout|timed out|read error|closed)|timed out waiting \d+ ?ms",
    re.IGNORECASE,
)
# The trainer names the rank that is stopped, or that the others wait for.
_HANG = "HangError: "
# torchrun --tee writes `[default1]:` (the local rank) before each line; torch adds `[rank3]:`.
_LOCAL_RANK = re.compile(r"^\[[a-z_-]+(\d+)\]:")
_PREFIX = re.compile(r"^(?:\[[a-z_-]+\d+\]: ?)+")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::.*)?$")
_ONE_LINE = re.compile(r"^(?:rank \d+: )?([A-Za-z_]\w*(?:Error|Exception): .+)$")
_TABLE_EXIT = re.compile(r"exitcode\s*:\s*(-?\d+)")
_TABLE_RANK = re.compile(r"^\s*rank\s*:\s*(\d+) \(local_rank: (\d+)\)")
_MAX_MESSAGE = 500


def explain(worker: Worker, *, host_lost: bool = False) -> Failure | None:
    """Why `worker` failed; None while it is pending, running, or has succeeded."""
    if host_lost and not worker.finished:
        return _failure("NodeLost", worker, f"node {worker.host} was lost")
    if worker.disruption and worker.phase != "Succeeded":
        reason = _DISRUPTIONS.get(worker.disruption, "Evicted")
        where = f" from node {worker.host}" if worker.host else ""
        text = {
            "NodeLost": f"node {worker.host} was lost",
            "Preempted": f"preempted{where} by a pod of higher priority",
        }
        return _failure(reason, worker, text.get(reason, f"evicted{where}: {worker.disruption}"))
    if worker.deleting and worker.phase != "Succeeded":
        return _failure("PodDeleted", worker, "the pod was deleted")
    if worker.phase != "Failed":
        return None
    if worker.exit_reason == "OOMKilled":
        return _failure(
            "OOMKilled", worker, "out of memory: raise resourcesPerNode.limits.memory or use less"
        )
    if worker.exit_reason == "Evicted":
        return _failure("Evicted", worker, worker.last_words or "evicted by the kubelet")
    return _from_words(worker) or _from_exit_code(worker)


def gone(name: str) -> Failure:
    """The failure of a worker that was created and is not there any more."""
    cause, retryable = _CLASSES["PodDeleted"]
    return Failure("PodDeleted", f"{name}: the pod is gone", retryable, cause, name)


def root_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that explains the others."""
    return min(failures, key=lambda failure: failure.cause, default=None)


def _from_words(worker: Worker) -> Failure | None:
    """What the last words, torchrun's table and the log say; a cause before its consequences."""
    told = _elastic_error(worker.last_words)
    text = worker.log_tail or worker.last_words
    streams = _by_local_rank(text)
    first = _first_in_table(text)
    said = [told or "", *(line for stream in streams.values() for line in _one_line_errors(stream))]
    for error in said:
        if error.startswith(_HANG):  # every rank ends with it, a stopped one by a signal
            return _exception(error, worker)
    if first and first.exit_code < 0:
        message = f"rank {first.rank}: {_signal_name(-first.exit_code)}"
        return _failure("Signal", worker, message, exit_code=128 - first.exit_code)
    lines = streams.get(first.local_rank, []) if first else []
    errors = ([told] if told else []) + _errors(lines)[-1:]
    if first and not errors:
        return _exited(worker, first.exit_code, f"rank {first.rank}: ", lines)
    errors += [error for stream in streams.values() for error in _errors(stream)]
    causes = [error for error in errors if not _PEER_LOST.search(error)]
    return _exception((causes or errors)[0], worker) if errors else None


def _from_exit_code(worker: Worker) -> Failure:
    code = worker.exit_code
    if code is None:
        return _failure("Unknown", worker, worker.exit_reason or "ended without an exit code")
    if code >= 128:
        return _failure("Signal", worker, _signal_name(code - 128))
    return _exited(worker, code, "", _lines(worker.log_tail))


def _exited(worker: Worker, code: int, who: str, lines: list[str]) -> Failure:
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = f": {last}" if last and "====" not in last else ""
    if code == EXIT_CONFIG:
        return _exception(f"ConfigError: {last}", worker)
    # 128 and more is a shell's way to say that a signal ended its child.
    reason = "Signal" if code >= 128 else "ExitCode"
    return _failure(reason, worker, f"{who}exit code {code}{said}", exit_code=code)


def _exception(line: str, worker: Worker) -> Failure:
    if line.startswith("ConfigError"):
        return _failure("ConfigError", worker, line.partition(": ")[2] or line)
    if line.startswith(_HANG):
        return _failure("Hang", worker, line.removeprefix(_HANG))
    if _PEER_LOST.search(line):
        return _failure("PeerLost", worker, f"lost contact with the other ranks: {line}")
    return _failure("UserException", worker, line)


def _failure(reason: str, worker: Worker, message: str, exit_code: int | None = None) -> Failure:
    cause, retryable = _CLASSES[reason]
    line = " ".join(f"{worker.name}: {message}".split())[:_MAX_MESSAGE]
    code = worker.exit_code if exit_code is None else exit_code
    return Failure(reason, line, retryable, cause, worker.name, code)


def _elastic_error(words: str) -> str | None:
    """The exception in torchelastic's error file: {"message": {"message": "ValueError: ..."}}."""
    try:
        message = json.loads(words)["message"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(message, dict):
        message = message.get("message", "")
    lines = [line for line in str(message).splitlines() if line.strip()]
    if not lines or "ChildFailedError" in lines[0]:
        return None
    # A traceback ends with the exception; a plain message begins with it.
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]).strip()


def _lines(text: str) -> list[str]:
    return [_PREFIX.sub("", line) for line in text.splitlines()]


def _by_local_rank(text: str) -> dict[int | None, list[str]]:
    """A log's lines by the local rank that wrote them; torchrun's own are under None."""
    streams: dict[int | None, list[str]] = {}
    for line in text.splitlines():
        match = _LOCAL_RANK.match(line)
        rank = int(match.group(1)) if match else None
        streams.setdefault(rank, []).append(_PREFIX.sub("", line))
    return streams


def _errors(lines: list[str]) -> list[str]:
    """What ended a rank: its tracebacks' exceptions, else errors in one line (our trainer's)."""
    return _tracebacks(lines) or _one_line_errors(lines)


def _one_line_errors(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := _ONE_LINE.match(line))]


def _tracebacks(lines: list[str]) -> list[str]:
    """Last lines of the Python tracebacks, without torchrun's own."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and line and not line[0].isspace():
            inside = False
            if _EXCEPTION.match(line) and "ChildFailedError" not in line:
                found.append(line.strip())
    return found


@dataclass(frozen=True)
class _FirstDeath:
    rank: int
    local_rank: int
    exit_code: int


def _first_in_table(text: str) -> _FirstDeath | None:
    """Torchrun's own "Root Cause (first observed failure)", the end of its failure table."""
    _, found, tail = text.rpartition("Root Cause")
    rank: re.Match[str] | None = None
    for line in tail.splitlines() if found else ():
        rank = _TABLE_RANK.match(line) or rank
        code = _TABLE_EXIT.search(line)
        if rank and code:
            return _FirstDeath(int(rank[1]), int(rank[2]), int(code[1]))
    return None


def _signal_name(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
