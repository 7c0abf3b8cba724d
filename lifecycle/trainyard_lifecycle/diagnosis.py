"""Why a worker failed or isn't running yet, in one line, and whether trying again can help.

Evidence of a failure, strongest first: what Kubernetes says (lost node, eviction, OOM kill), the
error JSON that torchelastic leaves as termination message, torchrun's failure table and the
tracebacks in the log, the exit code.
"""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainyard_api.job import EXIT_CONFIG
from trainyard_lifecycle.plan import Worker
from trainyard_lifecycle.torchrun_output import (
    find_errors,
    find_single_line_errors,
    parse_error_file,
    parse_first_failure,
    split_by_local_rank,
    strip_prefixes,
)


@dataclass(frozen=True)
class Failure:
    """Why one worker failed.

    Attributes:
        precedence: orders the failures of a gang: the lowest is the root cause.
        worker: its name; empty where the gang failed as a whole.
    """

    reason: str
    message: str
    retryable: bool
    precedence: int
    worker: str = ""
    exit_code: int | None = None


# reason -> (precedence, retryable). A gang's first failure drags the others down, so a rank that
# only saw its peer disappear must never be named while any other explanation exists.
_REASONS: dict[str, tuple[int, bool]] = {
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
    "StartTimeout": (6, True),
    "PeerLost": (7, True),
    "Unknown": (8, True),
}
# Every reason of a failed attempt: those above, and what keeps a gang from starting or ends it.
REASONS = frozenset(_REASONS) | {
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
_MAX_MESSAGE = 500


def diagnose_failure(worker: Worker, *, host_lost: bool = False) -> Failure | None:
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
        message = "out of memory: raise resourcesPerNode.limits.memory or reduce memory use"
        return _failure("OOMKilled", worker, message)
    if worker.exit_reason == "Evicted":
        return _failure("Evicted", worker, worker.termination_message or "evicted by the kubelet")
    return _diagnose_output(worker) or _diagnose_exit_code(worker)


def missing_worker_failure(name: str) -> Failure:
    """The failure of a worker that was created and no longer exists."""
    precedence, retryable = _REASONS["PodDeleted"]
    return Failure("PodDeleted", f"{name}: the pod no longer exists", retryable, precedence, name)


def start_timeout_failure(message: str) -> Failure:
    """The failure of a gang whose ranks didn't all join in time."""
    precedence, retryable = _REASONS["StartTimeout"]
    return Failure("StartTimeout", message, retryable, precedence)


def find_root_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that explains the others."""
    return min(failures, key=lambda failure: failure.precedence, default=None)


def _diagnose_output(worker: Worker) -> Failure | None:
    """What the termination message, torchrun's table and the log say; causes before effects."""
    reported = parse_error_file(worker.termination_message)
    log = worker.log_tail or worker.termination_message
    streams = split_by_local_rank(log)
    single_lines = [line for stream in streams.values() for line in find_single_line_errors(stream)]
    for error in [reported or "", *single_lines]:
        if error.startswith(_HANG):  # every rank ends with it, a stopped one by a signal
            return _diagnose_error(error, worker)
    first = parse_first_failure(log)
    if first and first.exit_code < 0:
        message = f"rank {first.rank}: {_signal_name(-first.exit_code)}"
        return _failure("Signal", worker, message, exit_code=128 - first.exit_code)
    lines = streams.get(first.local_rank, []) if first else []
    errors = ([reported] if reported else []) + find_errors(lines)[-1:]
    if first and not errors:
        return _diagnose_exit(worker, first.exit_code, f"rank {first.rank}: ", lines)
    errors += [error for stream in streams.values() for error in find_errors(stream)]
    causes = [error for error in errors if not _PEER_LOST.search(error)]
    return _diagnose_error((causes or errors)[0], worker) if errors else None


def _diagnose_exit_code(worker: Worker) -> Failure:
    code = worker.exit_code
    if code is None:
        return _failure("Unknown", worker, worker.exit_reason or "ended without an exit code")
    if code >= 128:
        return _failure("Signal", worker, _signal_name(code - 128))
    return _diagnose_exit(worker, code, "", strip_prefixes(worker.log_tail))


def _diagnose_exit(worker: Worker, code: int, rank: str, lines: list[str]) -> Failure:
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    detail = f": {last}" if last and "====" not in last else ""
    if code == EXIT_CONFIG:
        return _diagnose_error(f"ConfigError: {last}", worker)
    # 128 and more is a shell's way to say that a signal ended its child.
    reason = "Signal" if code >= 128 else "ExitCode"
    return _failure(reason, worker, f"{rank}exit code {code}{detail}", exit_code=code)


def _diagnose_error(line: str, worker: Worker) -> Failure:
    """The failure that an exception's line stands for."""
    if line.startswith("ConfigError"):
        return _failure("ConfigError", worker, line.partition(": ")[2] or line)
    if line.startswith(_HANG):
        return _failure("Hang", worker, line.removeprefix(_HANG))
    if _PEER_LOST.search(line):
        return _failure("PeerLost", worker, f"lost contact with the other ranks: {line}")
    return _failure("UserException", worker, line)


def _failure(reason: str, worker: Worker, message: str, exit_code: int | None = None) -> Failure:
    precedence, retryable = _REASONS[reason]
    line = _shorten(f"{worker.name}: {message}", _MAX_MESSAGE)
    code = worker.exit_code if exit_code is None else exit_code
    return Failure(reason, line, retryable, precedence, worker.name, code)


def _signal_name(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _shorten(text: str, limit: int) -> str:
    """The text on one line, cut at `limit` characters."""
    return " ".join(text.split())[:limit]


# The kubelet won't get over these without a change to the run.
_IMAGE_PERMANENT = ("InvalidImageName", "ErrImageNeverPull")
_IMAGE = ("ImagePullBackOff", "ErrImagePull", "ImageInspectError", "RegistryUnavailable")
_VOLUME_WORDS = ("persistentvolumeclaim", "volume", "mount")
_STARTING = ("ContainerCreating", "PodInitializing")
_MAX_PENDING_MESSAGE = 300


@dataclass(frozen=True)
class PendingReason:
    """What a gang waits for.

    Attributes:
        reason: Image, Scheduling, Volume, Container or Creating.
        permanent: waiting longer can't help: fail now.
        retryable: at the start deadline delete the pods and try again later, rather than fail.
    """

    reason: str
    message: str
    permanent: bool = False
    retryable: bool = False


_URGENCY = ("Image", "Volume", "Container", "Scheduling", "Creating")


def diagnose_pending(workers: Sequence[Worker], wanted: int) -> PendingReason:
    """The most telling reason among the workers that aren't running."""
    reasons = [_pending_reason(worker) for worker in workers if worker.phase == "Pending"]
    if not reasons:
        return PendingReason("Creating", f"creating workers: {len(workers)} of {wanted} exist")
    worst = min(reasons, key=lambda pending: _URGENCY.index(pending.reason))
    running = sum(worker.phase != "Pending" for worker in workers)
    if wanted > 1:
        text = f"{worst.message} ({running} of {wanted} workers are running)"
        return PendingReason(worst.reason, text, worst.permanent, worst.retryable)
    return worst


def _pending_reason(worker: Worker) -> PendingReason:
    def line(text: str) -> str:
        return f"{worker.name}: {_shorten(text, _MAX_PENDING_MESSAGE)}"

    container = ": ".join(filter(None, (worker.waiting_reason, worker.waiting_message)))
    if worker.waiting_reason in (*_IMAGE, *_IMAGE_PERMANENT):
        permanent = worker.waiting_reason in _IMAGE_PERMANENT
        return PendingReason("Image", line(container), permanent)
    if worker.unschedulable:
        if _names_a_volume(worker.unschedulable):
            return PendingReason("Volume", line(worker.unschedulable))
        return PendingReason("Scheduling", line(worker.unschedulable), retryable=True)
    if worker.warning:
        reason = "Volume" if _names_a_volume(worker.warning) else "Container"
        return PendingReason(reason, line(worker.warning))
    if worker.waiting_reason and worker.waiting_reason not in _STARTING:
        return PendingReason("Container", line(container))
    return PendingReason("Creating", line("the container is being created"))


def _names_a_volume(text: str) -> bool:
    return any(word in text.lower() for word in _VOLUME_WORDS)
