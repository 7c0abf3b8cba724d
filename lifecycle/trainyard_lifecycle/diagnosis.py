"""Why a worker failed, in one line. What follows from it is for policy.py to decide.

Evidence of a failure, strongest first: what Kubernetes says (lost node, eviction, OOM kill), how
the agent saw each rank end, the error JSON that torchelastic leaves as termination message,
torchrun's failure table and the tracebacks in the log, the exit code.
"""

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from trainyard_api.job import EXIT_CONFIG, HARDWARE_FAULT, KERNEL_FAULT, NCCL_MISUSE
from trainyard_api.policy import FailureReason
from trainyard_lifecycle.plan import RankExit, Worker
from trainyard_lifecycle.torchrun_output import (
    find_abort,
    find_errors,
    find_single_line_errors,
    parse_error_file,
    parse_failures,
    split_by_local_rank,
    strip_prefixes,
)


@dataclass(frozen=True)
class Failure:
    """Why one worker failed.

    Attributes:
        worker: its name; empty where the gang failed as a whole.
        exception: class of the exception that ended it, without its module.
    """

    reason: FailureReason
    message: str
    worker: str = ""
    exit_code: int | None = None
    exception: str = ""

    @property
    def precedence(self) -> int:
        """Orders the failures of a gang: the lowest is the root cause."""
        return _PRECEDENCE[self.reason]

    @property
    def words(self) -> str:
        """The message without the worker's name, which has the attempt's number."""
        return self.message.removeprefix(f"{self.worker}: ")


# A gang's first failure drags the others down, so a rank that only saw its peer disappear must
# never be named while any other explanation exists.
_PRECEDENCE: dict[FailureReason, int] = {
    "ConfigError": 0,
    "HardwareError": 1,
    "DiskFull": 1,
    "UserException": 1,
    "HubUnreachable": 1,
    "StartError": 1,
    "OOMKilled": 2,
    "NodeLost": 3,
    "Evicted": 3,
    "Preempted": 3,
    "PodDeleted": 3,
    "Hang": 4,
    "Signal": 5,
    "ExitCode": 6,
    "StartTimeout": 6,
    "PeerLost": 7,
    "Unknown": 8,
}
# Every reason of a failed attempt: those above, and what keeps a gang from starting or ends it.
REASONS = frozenset(_PRECEDENCE) | {
    "DeadlineExceeded",
    "QueueTimeout",
    "Image",
    "Volume",
    "Container",
    "Scheduling",
    "Creating",
    "Rejected",
}

# The reasons of a true condition DisruptionTarget, and Kueue's TerminationTarget, as ours.
_DISRUPTIONS: dict[str, FailureReason] = {
    "PreemptionByScheduler": "Preempted",
    "PreemptionByKubeScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "TerminationTarget": "Preempted",
}

# What a rank says when a peer vanished or the network failed: a consequence, worth another try. It
# has one of these classes: a ConnectionError of Python's is about a server that a script talks to.
_PEER_CLASSES = re.compile(r"RuntimeError|RankLostError|(Dist|Rendezvous)\w*Error")
_PEER_LOST = re.compile(
    r"^ranklosterror|connection (closed|reset|refused)|broken pipe|dist(backend|network|store)error"
    r"|nccl error|ncclsystemerror|ncclremoteerror|rendezvous\w*error|socket timeout"
    r"|store.*timed? ?out"
    r"|\bgloo\b.*(timeout|timed out|read error|closed)|timed out waiting \d+ ?ms",
    re.IGNORECASE,
)
_PORT_IN_USE = "EADDRINUSE"  # of a store that can't be served: no peer is to blame
# Classes of the trainer's and the agent's errors that are reasons of their own.
_TRAINER_ERRORS: dict[str, FailureReason] = {
    "ConfigError": "ConfigError",
    "DiskFullError": "DiskFull",
    "HangError": "Hang",
    "HardwareError": "HardwareError",
    "HubUnreachableError": "HubUnreachable",
    "StartError": "StartError",
    "StoppedError": "Signal",  # by SIGTERM, which not every rank got
}
# torch's words for a loader worker that a signal ended; there is no code.
_LOADER_WORKER = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")
_NO_ROOM = re.compile(r"\[Errno (28|122)\]")  # ENOSPC, EDQUOT
# The kubelet's words for a pod that is evicted for what it wrote itself, not for its node's sake:
# over its containers' limits, one container's, an emptyDir's.
_OWN_LIMIT = re.compile(
    r"exceed(s|ed) (the total limit|its local ephemeral storage limit|the limit)"
)
# The container runtime could not start the program; the message says why.
_NOT_STARTED = ("StartError", "ContainerCannotRun", "RunContainerError")
# The trainer names the rank that is stopped, or that the others wait for.
_HANG = "HangError: "
MAX_MESSAGE = 500


def diagnose_failure(worker: Worker) -> Failure | None:
    """Why `worker` failed; None while it is pending, running, or has succeeded."""
    if worker.host_lost and not worker.finished:
        return _failure("NodeLost", worker, f"node {worker.host} was lost")
    if worker.disruption and worker.phase != "Succeeded":
        reason = _DISRUPTIONS.get(worker.disruption, "Evicted")
        where = f" from node {worker.host}" if worker.host else ""
        text = {
            "NodeLost": f"node {worker.host} was lost",
            "Preempted": f"preempted{where} by a pod of higher priority",
        }
        if worker.disruption == "TerminationTarget":
            text["Preempted"] = f"preempted{where} by the queue"
        return _failure(reason, worker, text.get(reason, f"evicted{where}: {worker.disruption}"))
    if worker.deleting and worker.phase != "Succeeded":
        return _failure("PodDeleted", worker, "the pod was deleted")
    if worker.phase != "Failed":
        return None
    if worker.exit_reason == "OOMKilled":
        message = "out of memory: raise resourcesPerNode.limits.memory or reduce memory use"
        return _failure("OOMKilled", worker, message)
    if worker.exit_reason == "Evicted" and _OWN_LIMIT.search(worker.termination_message):
        fix = (
            "raise the ephemeral-storage limit in resourcesPerNode, or write less to the pod's disk"
        )
        return _failure("DiskFull", worker, f"{worker.termination_message.strip()}: {fix}")
    if worker.exit_reason == "Evicted":
        return _failure("Evicted", worker, worker.termination_message or "evicted by the kubelet")
    if worker.exit_reason in _NOT_STARTED:
        message = f"the container can't be started: {worker.termination_message}"
        return _failure("StartError", worker, message, exit_code=worker.exit_code)
    if worker.exit_code is None and worker.exit_reason:
        # The kubelet's own admission: the scheduler did not know that the node's room was taken.
        why = f"node {worker.host} did not run the pod: {worker.exit_reason}"
        detail = f": {worker.termination_message}" if worker.termination_message else ""
        return _failure("Evicted", worker, why + detail)
    return _diagnose_output(worker) or _diagnose_exit_code(worker)


def missing_worker_failure(name: str) -> Failure:
    """The failure of a worker that was created and no longer exists."""
    return Failure("PodDeleted", f"{name}: the pod no longer exists", name)


def start_timeout_failure(message: str) -> Failure:
    """The failure of a gang whose ranks didn't all join in time."""
    return Failure("StartTimeout", message)


def find_root_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that explains the others; among equals, one that the rank itself explains."""
    return min(failures, key=lambda each: (each.precedence, not each.exception), default=None)


def _diagnose_output(worker: Worker) -> Failure | None:
    """What the termination message, torchrun's table and the log say; causes before effects."""
    reported = parse_error_file(worker.termination_message)
    log = worker.log_tail or worker.termination_message
    streams = split_by_local_rank(log)
    single_lines = [line for stream in streams.values() for line in find_single_line_errors(stream)]
    for error in [reported or "", *single_lines]:
        if error.startswith(_HANG):  # every rank ends with it, a stopped one by a signal
            return _diagnose_error(error, worker)
    failed = _failed_ranks(worker, log)
    first = failed[0] if failed else None
    if first and first.exit_code < 0 and first.exit_code != -signal.SIGTERM:
        return _signal_failure(first, worker, streams.get(first.local_rank, []))
    lines = streams.get(first.local_rank, []) if first else []
    errors = ([reported] if reported else []) + find_errors(lines)[-1:]
    # torchrun notices a killed rank only when it looks next; a peer that lost it has written its
    # error by then, and comes first in the table. SIGTERM is how torchrun itself ends the others.
    killed = [f for f in failed if f.exit_code < 0 and f.exit_code != -signal.SIGTERM]
    if killed and all(map(_has_lost_its_peer, errors)):
        return _signal_failure(killed[0], worker, streams.get(killed[0].local_rank, []))
    if first and first.exit_code < 0 and not errors:
        return _signal_failure(first, worker, lines)
    if first and not errors:
        return _diagnose_exit(worker, first.exit_code, f"rank {first.rank}: ", lines)
    errors += [error for stream in streams.values() for error in find_errors(stream)]
    causes = [error for error in errors if not _has_lost_its_peer(error)]
    return _diagnose_error((causes or errors)[0], worker) if errors else None


def _failed_ranks(worker: Worker, log: str) -> list[RankExit]:
    """The ranks that failed, the first one first: as the agent saw them, else torchrun's table."""
    table = parse_failures(log)
    seen = [rank for rank in worker.ranks if rank.exit_code]
    if not table and all(rank.exit_code == -signal.SIGTERM for rank in seen):
        return []  # the worker was stopped as a whole
    known = {rank.rank for rank in worker.ranks}
    unseen = [rank for rank in table if rank.rank not in known]
    if not unseen:
        return seen
    # Those ended before the agent found them. A SIGTERM is what torchrun then sends the others.
    return sorted([*seen, *unseen], key=lambda rank: rank.exit_code == -signal.SIGTERM)


def _signal_failure(rank: RankExit, worker: Worker, lines: list[str]) -> Failure:
    """The failure of a rank that a signal ended; `lines` are its own."""
    message = f"rank {rank.rank}: {_signal_name(-rank.exit_code)}"
    if rank.exit_code == -signal.SIGABRT and (why := find_abort(lines)):
        message += f": {why}"
        # NCCL's watchdog aborts a rank for an error of its GPU that it sees before Python does.
        if reason := _gpu_reason(why):
            return _failure(reason, worker, message, exit_code=128 - rank.exit_code)
    return _failure("Signal", worker, message, exit_code=128 - rank.exit_code)


def _diagnose_exit_code(worker: Worker) -> Failure:
    code = worker.exit_code
    if code is None:
        return _failure("Unknown", worker, "ended without an exit code")
    if code >= 128:
        return _failure("Signal", worker, _signal_name(code - 128))
    return _diagnose_exit(worker, code, "", strip_prefixes(worker.log_tail))


def _diagnose_exit(worker: Worker, code: int, rank: str, lines: list[str]) -> Failure:
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    detail = f": {last}" if last and "====" not in last else ""
    if code == EXIT_CONFIG:
        return _diagnose_error(f"ConfigError: {last}", worker)
    # 128 and more is a shell's way to say that a signal ended its child.
    reason: FailureReason = "Signal" if code >= 128 else "ExitCode"
    return _failure(reason, worker, f"{rank}exit code {code}{detail}", exit_code=code)


def _diagnose_error(line: str, worker: Worker) -> Failure:
    """The failure that an exception's line stands for."""
    name = _class_of(line)
    if name in _TRAINER_ERRORS:
        text = line.partition(": ")[2] or line
        code = 128 + signal.SIGTERM if name == "StoppedError" else None
        return _failure(_TRAINER_ERRORS[name], worker, text, exit_code=code, exception=name)
    if reason := _gpu_reason(line):
        return _failure(reason, worker, line, exception=name)
    if _has_lost_its_peer(line):
        message = f"lost contact with the other ranks: {line}"
        return _failure("PeerLost", worker, message, exception=name)
    if _PORT_IN_USE in line:  # the next attempt may have its port
        return _failure("PeerLost", worker, line, exception=name)
    if name == "RuntimeError" and _LOADER_WORKER.search(line):
        return _failure("Signal", worker, line, exception=name)
    full = name == "OSError" and _NO_ROOM.search(line)
    return _failure("DiskFull" if full else "UserException", worker, line, exception=name)


def _gpu_reason(text: str) -> FailureReason | None:
    """What an error of CUDA or NCCL stands for, where its text is the only evidence."""
    if HARDWARE_FAULT.search(text):
        return "HardwareError"
    if KERNEL_FAULT.search(text):
        return "UserException"
    return "ConfigError" if NCCL_MISUSE.search(text) else None


def _class_of(line: str) -> str:
    """The exception's class, without its module."""
    return line.partition(": ")[0].rpartition(".")[2]


def _has_lost_its_peer(line: str) -> bool:
    network = _PEER_CLASSES.fullmatch(_class_of(line)) and _PEER_LOST.search(line)
    return bool(network) and _PORT_IN_USE not in line and not _gpu_reason(line)


def _failure(
    reason: FailureReason,
    worker: Worker,
    message: str,
    exit_code: int | None = None,
    exception: str = "",
) -> Failure:
    line = shorten(f"{worker.name}: {message}", MAX_MESSAGE)
    code = worker.exit_code if exit_code is None else exit_code
    return Failure(reason, line, worker.name, code, exception)


def _signal_name(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def shorten(text: str, limit: int) -> str:
    """The text on one line, cut at `limit` characters."""
    return " ".join(text.split())[:limit]
