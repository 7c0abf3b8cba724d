"""Errors with a one-line message that says what to change, and how a rank reports them."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trainyard_api.job import (
    EXIT_CONFIG,
    HARDWARE_FAULT,
    KERNEL_FAULT,
    NCCL_MISUSE,
    RESULT_FILE_ENV,
)

# torchrun sets each worker's error file (torchelastic's error handling).
ERROR_FILE_ENV = "TORCHELASTIC_ERROR_FILE"
# The file becomes the pod's termination message, of which Kubernetes keeps 4096 bytes.
MAX_ERROR_BYTES = 3500
MAX_MESSAGE = 1200  # characters of it
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it
# A rank that is stopped while it holds the lock must not keep the others from exiting.
LOCK_TIMEOUT = 20.0


class UserError(Exception):
    """Base class: the message is one line, printed without a traceback."""

    exit_code = 1
    # Whether usually every rank raises it: then one prints it, without its rank number.
    on_every_rank = False


class ConfigError(UserError):
    """The manifest or the environment must change; a retry does not help."""

    exit_code = EXIT_CONFIG
    on_every_rank = True


class HubUnreachableError(UserError):
    """The Hugging Face Hub, its mirror or a bucket gives no answer: a later attempt asks again."""

    on_every_rank = True


class CheckpointError(UserError):
    """No checkpoint could be used, or the last one, or the model, could not be written."""

    on_every_rank = True


class DiskFullError(UserError):
    """A checkpoint, the model or the prepared data exceeds the disk, a quota or a limit."""

    on_every_rank = True


class ExportError(UserError):
    """The exported model is not the trained one: it is not published."""

    on_every_rank = True


class NonFiniteLossError(UserError):
    """The loss, or the weights, became nan or infinite."""

    on_every_rank = True


class SupersededError(UserError):
    """A newer attempt of this run exists: this one must not write."""

    on_every_rank = True


class StoppedError(UserError):
    """SIGTERM stopped the run before its last step.

    Attributes:
        alone: this rank got the signal and others did not, so its launcher can't say who did.
    """

    on_every_rank = True

    def __init__(self, message: str, *, alone: bool = False) -> None:
        super().__init__(message)
        self.alone = alone


class RankLostError(UserError):
    """Another rank is lost; the cause is reported by that rank or its node."""


class HangError(UserError):
    """A rank is stopped or blocks the others; the run resumes from its newest checkpoint."""

    def __init__(self, message: str, stacks: str = "") -> None:
        super().__init__(message)
        self.stacks = stacks  # of the ranks that the message names, several lines


class OutOfMemoryError(UserError):
    """A step does not fit into memory."""


class HardwareError(UserError):
    """A GPU or its links failed: another attempt, best on another node, can succeed."""


class KernelError(UserError):
    """A kernel did what no GPU allows: a mistake in a program or its data."""


# This process's GPU, for messages: its index and UUID, once it has one.
_gpu = ""


def name_gpu(gpu: str) -> None:
    """Remember which GPU this process uses: after an error CUDA may not say it any more."""
    global _gpu
    _gpu = gpu


_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|\bgloo\b|\bnccl\b|ncclremote", re.IGNORECASE
)
# torch's errors for a store or a peer that doesn't respond; torch isn't imported here.
_PEER_LOST_CLASSES = {"DistNetworkError", "DistStoreError", "DistBackendError"}


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)
# What follows torch's own words: advice, and where in C++ the error was raised.
_ADVICE = re.compile(
    r"If reserved but unallocated memory|See documentation for Memory|Search for `cuda"
    r"|CUDA kernel errors might be|Exception raised from"
)
# NCCL 2.30 doesn't name the ranks.
_SHARED_GPU = re.compile(r"Duplicate GPU detected : rank (\d+) and rank (\d+)")
_SOURCE = re.compile(r"^\[enforce fail at [^]]*\] .*?\. (?=DefaultCPUAllocator)")


def as_rank_lost(error: BaseException, where: str, stopping: bool = False) -> BaseException:
    """A RankLostError in place of torch's errors for a lost peer; else `error`.

    `where`: `in step 137` or `while loading`. `stopping`: after SIGTERM a lost peer is
    expected, since torchrun stops all ranks: StoppedError.
    """
    if not is_rank_lost(error):
        return error
    if stopping:
        return StoppedError(f"SIGTERM: stopped {where} without saving: another rank has exited")
    return RankLostError(f"lost another rank {where}: {_words(error)[:300]}")


def is_rank_lost(error: BaseException) -> bool:
    """Whether it is one of torch's errors for a lost peer."""
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ in _PEER_LOST_CLASSES or bool(_PEER_LOST.search(_words(error)))


def as_out_of_memory(error: Exception, step: int) -> Exception:
    """An OutOfMemoryError in place of torch's errors for too little memory; else `error`.

    It has torch's figures, and names what may change when the run resumes: the same batch in
    smaller parts.
    """
    text = _words(error)
    if not isinstance(error, RuntimeError) or not _NO_MEMORY.search(text):
        return error
    return OutOfMemoryError(
        f"the batch of step {step} doesn't fit into memory: raise"
        " config.gradient_accumulation_steps or set config.activation_checkpointing"
        f" ({_place()}: {_SOURCE.sub('', text)[:500].rstrip('. ')})"
    )


def as_gpu_error(error: BaseException, where: str) -> BaseException:
    """One line in place of torch's errors for a GPU, with the GPU's name; else `error`.

    HardwareError if the GPU or a link failed; KernelError for an illegal access or a failed
    assertion, which is a mistake in a program; ConfigError if NCCL was used wrongly, as by two
    ranks on one GPU. A peer that is lost is none of them: its own rank or node reports the cause.
    Made from the texts of CUDA 13.2 and of NCCL 2.28 and 2.30; not measured here.
    """
    text = _words(error)
    if not isinstance(error, RuntimeError):
        return error
    if found := HARDWARE_FAULT.search(text):
        return HardwareError(
            f"{where}: {found[0]} (on {_place()}); if this node fails again, have its GPUs and the"
            f" kernel log (Xid) checked: {text[:300]}"
        )
    blocking = os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"  # then its traceback tells the truth
    if (found := KERNEL_FAULT.search(text)) and not blocking:
        return KernelError(
            f"{where}: {found[0]} (on {_place()}): an index outside its tensor, or a mistake in a"
            " kernel; CUDA_LAUNCH_BLOCKING=1 in the trainer's env gives a traceback of the line"
        )
    if NCCL_MISUSE.search(text):
        shared = _SHARED_GPU.search(text) or "Multiple Ranks are using the same GPU" in text
        ranks = f"ranks {shared[1]} and {shared[2]}" if isinstance(shared, re.Match) else "ranks"
        problem = f"{ranks} use the same GPU: request as many GPUs as processes; " if shared else ""
        return ConfigError(f"{where}: {problem}{text[:400]} (on {_place()})")
    return error


def _words(error: BaseException) -> str:
    """What torch says, on one line, without advice and its place in the source."""
    return _ADVICE.split(" ".join(str(error).split()), maxsplit=1)[0].strip()


def _place() -> str:
    """`host1, GPU 0, GPU-8f2b...`: this host, and this process's GPU if it has one."""
    return ", ".join(filter(None, (socket.gethostname(), _gpu)))


def type_and_message(error: BaseException) -> str:
    """`ConfigError: config.n_layrs: unknown key; did you mean n_layer?`"""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def report_error(error: BaseException, rank: int) -> None:
    """Print an error, once for all ranks of this pod, and write the error file.

    The ranks fail in any order, and their launcher ends all of them once one has exited. So the
    first one to take the error file's lock prints its error before it exits; the others wait for
    the lock, and print only an error that is different. This needs no connection between ranks.
    """
    with _locked_error_file() as file:
        if not _is_reported(error, file):
            prefix = "" if rank == 0 or getattr(error, "on_every_rank", False) else f"rank {rank}: "
            if not isinstance(error, UserError):
                text = "".join(traceback.format_exception(error))
            elif isinstance(error, HangError):
                text = f"{prefix}{type_and_message(error)}\n{error.stacks}\n"
            else:
                text = f"{prefix}{type_and_message(error)}\n"
            print(text, end="", file=sys.stderr, flush=True)
        _write_error_files(error, file)


def write_error_file(error: BaseException) -> None:
    """Write the error file only: another rank prints the error."""
    with _locked_error_file() as file:
        _write_error_files(error, file)


def _is_reported(error: BaseException, file: int | None) -> bool:
    """Whether the error that another rank of this pod has reported covers `error`."""
    reported = _message(_read(file))
    if not reported:
        return False
    if isinstance(error, RankLostError):
        return True
    if reported.startswith(RankLostError.__name__):
        return False  # a cause is printed even after its consequence
    return (
        getattr(error, "on_every_rank", False) or reported == type_and_message(error)[:MAX_MESSAGE]
    )


@contextlib.contextmanager
def _locked_error_file() -> Iterator[int | None]:
    """This pod's error file, locked; None if there is none or it can't be opened."""
    file = None
    try:
        if path := _pod_error_path():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            deadline = time.monotonic() + LOCK_TIMEOUT
            while not _try_lock(file) and time.monotonic() < deadline:
                time.sleep(0.01)
    except OSError as problem:
        print(f"warning: {path}: cannot be written: {problem.strerror}", file=sys.stderr)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _pod_error_path() -> Path | None:
    """Shared by the ranks of a pod in one attempt: the launcher's result file, else torchrun's."""
    if name := os.environ.get(RESULT_FILE_ENV):
        return Path(name)
    if "TORCHELASTIC_RUN_ID" in os.environ and (name := os.environ.get(ERROR_FILE_ENV)):
        return Path(name).parent.parent / "error.json"  # .../ATTEMPT/LOCAL_RANK/error.json
    return None


def _try_lock(file: int) -> bool:
    """Whether the lock was taken, or there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _read(file: int | None) -> str:
    return "" if file is None else os.pread(file, 1 << 16, 0).decode(errors="replace")


def _message(text: str) -> str:
    """The message in an error JSON; "" for anything else, such as the report of a success."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["message"]["message"])
    return ""


def _write_error_files(error: BaseException, file: int | None) -> None:
    """Write torchelastic's error JSON for torchrun, and for the pod if no rank has before."""
    text, reported = _error_json(error), _read(file)
    if isinstance(error, RankLostError) and _message(reported):
        text = reported  # torchrun may read any rank's file: all have the cause
    _write_pod_error(text, file)
    try:
        if name := os.environ.get(ERROR_FILE_ENV):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
    except OSError as problem:
        print(f"warning: error file not written: {problem}", file=sys.stderr)


def _write_pod_error(text: str, file: int | None) -> None:
    """Write this pod's error file, unless one of its ranks has."""
    try:
        if file is not None and not _read(file):
            os.pwrite(file, text.encode(), 0)
    except OSError as problem:
        print(f"warning: error file not written: {problem}", file=sys.stderr)


def _error_json(error: BaseException) -> str:
    """torchelastic's error format, small enough for a pod's termination message."""
    stack = error.stacks[:2000] if isinstance(error, HangError) else ""
    if not isinstance(error, UserError):
        stack = "".join(traceback.format_exception(error))[-2000:]
    message = type_and_message(error)[:MAX_MESSAGE]
    extra = {"py_callstack": stack, "timestamp": str(int(time.time()))}
    text = json.dumps({"message": {"message": message, "extraInfo": extra}})
    if len(text) > MAX_ERROR_BYTES:
        extra["py_callstack"] = stack[-500:]
        text = json.dumps({"message": {"message": message[:500], "extraInfo": extra}})
    return text


def interrupt_once() -> None:
    """Let only the first SIGINT raise KeyboardInterrupt: a second one would hit its handling.

    After Ctrl-C in a terminal torchrun, which got the signal too, repeats it to its ranks, and
    kills what is left later. Without torchrun a second Ctrl-C ends the process at once.
    """

    def again(_signal: int, _frame: FrameType | None) -> None:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            os._exit(EXIT_INTERRUPTED)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, again)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, interrupt)


def exit_with(error: BaseException, rank: int) -> int:
    """Report an error, once for all ranks; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        if rank == 0:
            print("interrupted; start it again to resume from the newest checkpoint")
        return EXIT_INTERRUPTED
    if isinstance(error, StoppedError):
        if rank == 0:
            print(error, flush=True)
        if error.alone:
            # All ranks end by the signal, so that torchrun would name its first one.
            with _locked_error_file() as file:
                _write_pod_error(_error_json(error), file)
        # Die by SIGTERM, as without a handler: torchrun and its caller expect that.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    report_error(error, rank)
    return error.exit_code if isinstance(error, UserError) else 1
