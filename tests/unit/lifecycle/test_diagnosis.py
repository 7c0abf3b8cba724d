"""Root causes, from logs that torchrun 2.15 wrote and from what Kubernetes reports."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_worker
from trainyard_lifecycle.diagnosis import Failure, diagnose_failure, find_root_cause
from trainyard_lifecycle.plan import RankExit, Worker
from trainyard_lifecycle.policy import DEFAULT_ACTIONS

LOGS = Path(__file__).parent / "torchrun_logs"


def tried_again(failure: Failure) -> bool:
    """What follows where failurePolicy says nothing."""
    return DEFAULT_ACTIONS[failure.reason] != "Fail"


def failed(**fields: Any) -> Worker:
    defaults: dict[str, Any] = {"phase": "Failed", "exit_code": 1}
    return make_worker(**(defaults | fields))


@pytest.mark.parametrize(
    ("log", "reason", "message", "retryable"),
    [
        ("value", "UserException", "ValueError: bad sample 17: label 12 of 10 classes", False),
        ("kill", "Signal", "rank 1: killed by SIGKILL", True),
        ("exit", "ExitCode", "rank 1: exit code 3: cannot open license file", False),
    ],
)
def test_torchrun_logs_name_the_rank_that_died_first(
    log: str, reason: str, message: str, retryable: bool
) -> None:
    failure = diagnose_failure(failed(log_tail=(LOGS / f"{log}.log").read_text()))
    assert failure is not None
    assert (failure.reason, tried_again(failure)) == (reason, retryable)
    assert failure.message == f"r-1-0: {message}"


def test_a_rank_that_ended_before_it_was_seen_is_the_first() -> None:
    """A script with a syntax error ends within milliseconds; the agent saw the other rank only."""
    log = (LOGS / "exit.log").read_text()
    failure = diagnose_failure(failed(log_tail=log, ranks=(RankExit(0, 0, -signal.SIGTERM),)))
    assert failure is not None
    assert failure.reason == "ExitCode"
    assert failure.message == "r-1-0: rank 1: exit code 3: cannot open license file"


def elastic(message: str) -> str:
    """torchelastic's error file."""
    return json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "1"}}})


def reported(message: str) -> dict[str, str]:
    """The fields of a worker that left such a file as its termination message."""
    return {"termination_message": elastic(message)}


@pytest.mark.parametrize(
    ("fields", "reason", "retryable", "text"),
    [
        (reported("ConfigError: corpus: no such file"), "ConfigError", False,
         "corpus: no such file"),
        (reported("KeyError: 'x'"), "UserException", False, "KeyError: 'x'"),
        (reported("RuntimeError: [gloo] Connection closed by peer [10.0.0.1]:1"),
         "PeerLost", True, "lost contact"),
        (reported("torch.distributed.DistBackendError: NCCL error in: x.cpp:1"),
         "PeerLost", True, "lost contact"),
        ({"exit_reason": "OOMKilled", "exit_code": 137}, "OOMKilled", True, "memory"),
        ({"exit_code": 137}, "Signal", True, "killed by SIGKILL"),
        ({"exit_code": 139}, "Signal", True, "killed by SIGSEGV"),
        ({"exit_code": 2, "log_tail": "usage: x\n"}, "ExitCode", False, "exit code 2: usage: x"),
        ({"exit_code": None}, "Unknown", True, "without an exit code"),
        ({"exit_code": None, "exit_reason": "OutOfcpu",
          "termination_message": "Pod was rejected: Node didn't have enough resource: cpu"},
         "Evicted", True, "node host0 did not run the pod: OutOfcpu: Pod was rejected: Node"),
        ({"exit_reason": "Evicted", "termination_message": "The node was low on resource: memory."},
         "Evicted", True, "low on resource"),
        ({"log_tail": "Traceback (most recent call last):\n  File x\nFileNotFoundError: d.bin\n"},
         "UserException", False, "FileNotFoundError: d.bin"),
        ({"phase": "Running", "disruption": "DeletionByTaintManager"}, "NodeLost", True, "host0"),
        ({"phase": "Running", "disruption": "PreemptionByScheduler"}, "Preempted", True,
         "preempted"),
        ({"phase": "Running", "disruption": "EvictionByEvictionAPI"}, "Evicted", True, "evicted"),
        (reported("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"),
         "HardwareError", True, "uncorrectable ECC"),
        (reported("RuntimeError: CUDA error: device-side assert triggered"),
         "UserException", False, "device-side assert"),
        (reported("HardwareError: GPU 3 has fallen off the bus"), "HardwareError", True, "GPU 3"),
        (reported("DiskFullError: /data is full"), "DiskFull", False, "/data is full"),
        (reported("RuntimeError: NCCL error in: x.cpp:1, unhandled system error"),
         "PeerLost", True, "NCCL"),
        ({"phase": "Running", "disruption": "TerminationTarget"}, "Preempted", True, "the queue"),
        ({"phase": "Running", "deleting": True}, "PodDeleted", True, "was deleted"),
    ],
)  # fmt: skip
def test_each_kind_of_evidence_gives_its_reason(
    fields: dict[str, Any], reason: str, retryable: bool, text: str
) -> None:
    failure = diagnose_failure(failed(**fields))
    assert failure is not None
    assert (failure.reason, tried_again(failure)) == (reason, retryable)
    assert text in failure.message
    assert "\n" not in failure.message


def test_the_trainers_config_error_is_read_from_the_log() -> None:
    log = (LOGS / "exit.log").read_text()
    log = log.replace("[default1]:cannot open", "[default1]:ConfigError: cannot open")
    failure = diagnose_failure(failed(log_tail=log.replace("exitcode  : 3", "exitcode  : 78")))
    assert failure is not None
    assert (failure.reason, failure.message) == ("ConfigError", "r-1-0: cannot open license file")


@pytest.mark.parametrize(
    ("line", "reason", "retryable"),
    [
        ("rank 1: RankLostError: lost another rank in step 136: gone", "PeerLost", True),
        ("CheckpointError: none of the 2 checkpoints is valid", "UserException", False),
        ("NonFiniteLossError: the loss of step 7 is nan", "UserException", False),
    ],
)
def test_the_trainers_single_line_errors_are_read_from_the_log(
    line: str, reason: str, retryable: bool
) -> None:
    log = (LOGS / "exit.log").read_text().replace("cannot open license file", line)
    failure = diagnose_failure(failed(log_tail=log.replace("exitcode  : 3", "exitcode  : 1")))
    assert failure is not None
    assert (failure.reason, tried_again(failure)) == (reason, retryable)
    assert line.removeprefix("rank 1: ") in failure.message


def test_a_rank_that_lost_its_peer_does_not_hide_the_signal_beside_it() -> None:
    words = elastic("RankLostError: lost another rank in step 3")
    log = (LOGS / "kill.log").read_text()
    failure = diagnose_failure(failed(log_tail=log, termination_message=words))
    assert failure is not None
    assert failure.message == "r-1-0: rank 1: killed by SIGKILL"


def test_a_killed_rank_is_named_although_its_peer_is_first_in_the_table() -> None:
    log = (LOGS / "kill.log").read_text()
    swapped = log.replace("exitcode  : -15 (pid: 21086)  (SIGTERM)", "exitcode  : 1 (pid: 21086)")
    others, root = swapped.split("Failures:\n")[1].split("Root Cause (first observed failure):\n")
    swapped = swapped.split("Failures:\n")[0] + f"Failures:\n{root}\nRoot Cause (first):\n{others}"
    failure = diagnose_failure(failed(log_tail=swapped, **reported("RankLostError: lost another")))
    assert failure is not None
    assert failure.message == "r-1-0: rank 1: killed by SIGKILL"
    # An exception of the first one is the cause: torchrun kills who doesn't end by SIGTERM.
    failure = diagnose_failure(failed(log_tail=swapped, **reported("ValueError: no label")))
    assert failure is not None
    assert failure.message == "r-1-0: ValueError: no label"


HANG = "HangError: rank 1 (host1, pid 7) is stopped: no heartbeat for 20 s; last seen in step 9"


@pytest.mark.parametrize("line", [HANG, f"rank 1: {HANG}"])
@pytest.mark.parametrize("words", [elastic(HANG), ""])
def test_a_hang_explains_the_signals_that_end_it(line: str, words: str) -> None:
    log = (LOGS / "kill.log").read_text()
    if not words:
        log = f"[default0]:{line}\n[default0]:  rank 1 (host1, pid 7), step 9:\n{log}"
    failure = diagnose_failure(failed(log_tail=log, termination_message=words))
    assert failure is not None
    assert (failure.reason, tried_again(failure)) == ("Hang", True)
    assert failure.message == f"r-1-0: {HANG.removeprefix('HangError: ')}"
    killed = diagnose_failure(failed(node=1, exit_code=137))
    lost = diagnose_failure(make_worker(node=1, phase="Running", host_lost=True))
    assert find_root_cause([f for f in (killed, failure) if f]) is failure
    assert find_root_cause([f for f in (failure, lost) if f]) is lost


def test_a_running_worker_on_a_lost_node_is_lost() -> None:
    failure = diagnose_failure(make_worker(phase="Running", host_lost=True))
    assert failure is not None
    assert failure.reason == "NodeLost"


@pytest.mark.parametrize("phase", ["Pending", "Running", "Succeeded"])
def test_a_worker_that_did_not_fail_has_no_failure(phase: Any) -> None:
    assert diagnose_failure(make_worker(phase=phase)) is None


def test_the_root_cause_is_never_the_rank_that_lost_its_peer() -> None:
    peer = diagnose_failure(failed(**reported("RuntimeError: Connection closed by peer")))
    killed = diagnose_failure(failed(node=1, exit_code=137))
    assert peer is not None
    assert killed is not None
    cause = find_root_cause([peer, killed])
    assert cause is killed
