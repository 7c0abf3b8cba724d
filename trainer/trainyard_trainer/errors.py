"""Errors a user can cause: one line that says what to change; and how a rank ends with one."""

import contextlib
import fcntl
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trainyard_api.job import EXIT_CONFIG, RESULT_FILE_ENV

# torchrun tells each worker where to leave its last words.
ERROR_FILE_ENV = "TORCHELASTIC_ERROR_FILE"
# The file becomes the pod's termination message, of which Kubernetes keeps 4096 bytes.
MAX_ERROR_BYTES = 3500
MAX_MESSAGE = 1200  # characters of it
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it
# A rank that was stopped while it spoke must not keep the others from ending.
SPEAKING_SECONDS = 20.0


class UserError(Exception):
    """Base: the message is one line, shown without a traceback."""

    exit_code = 1
    # Usually every rank raises it: then one speaks for all, and doesn't name itself.
    on_every_rank = False


class ConfigError(UserError):
    """The manifest or its surroundings must change; retrying cannot help."""

    exit_code = EXIT_CONFIG
    on_every_rank = True


class CheckpointError(UserError):
    """No checkpoint could be used, or the last one could not be written."""

    on_every_rank = True


class NonFiniteLossError(UserError):
    """The loss became nan or infinite."""

    on_every_rank = True


class SupersededError(UserError):
    """A newer attempt of this run exists: this one must not write any more."""

    on_every_rank = True


class StoppedError(UserError):
    """SIGTERM ended the run before its last step; in good order, unless another rank was gone."""

    on_every_rank = True


class RankLostError(UserError):
    """Another rank went away: a consequence, whose cause that rank (or its node) knows."""


class HangError(UserError):
    """A rank is stopped, or keeps the others waiting: the newest checkpoint is where to go on."""

    def __init__(self, message: str, stacks: str = "") -> None:
        super().__init__(message)
        self.stacks = stacks  # of the ranks the message names, over several lines


class OutOfMemoryError(UserError):
    """A step's activations don't fit."""


_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|\bgloo\b|\bnccl\b|ncclremote", re.IGNORECASE
)
# torch's own classes for a store or a peer that doesn't answer; torch isn't imported here.
_LOST_CLASSES = {"DistNetworkError", "DistStoreError", "DistBackendError"}
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


def lost(error: BaseException, where: str, stopping: bool = False) -> BaseException:
    """`error` as a UserError where it is torch's way to say that a peer is gone.

    `where`: `in step 137` or `while loading`. `stopping`: after SIGTERM a lost peer is no news,
    torchrun ends them all.
    """
    if not isinstance(error, RuntimeError):
        return error
    text = " ".join(str(error).partition("Exception raised from")[0].split())
    if type(error).__name__ not in _LOST_CLASSES and not _LOST.search(text):
        return error
    if stopping:
        return StoppedError(f"SIGTERM: stopped {where}, unsaved: another rank is gone")
    return RankLostError(f"lost another rank {where}: {text[:300]}")


def out_of_memory(error: Exception, step: int) -> Exception:
    """`error` as a UserError where it says that the batch of `step` doesn't fit."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or not _NO_MEMORY.search(text):
        return error
    return OutOfMemoryError(
        f"the batch of step {step} doesn't fit into memory: lower config.batch_size, raise"
        " gradient_accumulation_steps or set activation_checkpointing"
        f" ({text.partition('. ')[0][:200]})"
    )


def one_line(error: BaseException) -> str:
    """`ConfigError: config.n_layrs: unknown key; did you mean n_layer?`"""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def speak(error: BaseException, rank: int) -> None:
    """Print what went wrong, once for all ranks of this pod, and leave last words.

    The ranks fail in any order, and their launcher ends all of them once one has ended. So none
    ends before one has spoken, and the first one to come here speaks: the others wait for it, and
    print only what they have to add. No rank has to be alive for that, and no connection.
    """
    with _words() as words:
        if not _is_said(error, words):
            who = "" if rank == 0 or getattr(error, "on_every_rank", False) else f"rank {rank}: "
            if not isinstance(error, UserError):
                text = "".join(traceback.format_exception(error))
            elif isinstance(error, HangError):
                text = f"{who}{one_line(error)}\n{error.stacks}\n"
            else:
                text = f"{who}{one_line(error)}\n"
            print(text, end="", file=sys.stderr, flush=True)
        _leave_words(error, words)


def write_last_words(error: BaseException) -> None:
    """Leave last words only: another rank prints them."""
    with _words() as words:
        _leave_words(error, words)


def _is_said(error: BaseException, words: int | None) -> bool:
    """Whether what another rank of this pod has printed covers `error`."""
    said = _message(_read(words))
    if not said:
        return False
    if isinstance(error, RankLostError):
        return True
    if said.startswith(RankLostError.__name__):
        return False  # a cause is news after its consequence
    return getattr(error, "on_every_rank", False) or said == one_line(error)[:MAX_MESSAGE]


@contextlib.contextmanager
def _words() -> Iterator[int | None]:
    """The file that holds this pod's last words, locked; None if it can't be had."""
    file = None
    try:
        if path := _words_path():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            deadline = time.monotonic() + SPEAKING_SECONDS
            while not _try_lock(file) and time.monotonic() < deadline:
                time.sleep(0.01)
    except OSError as problem:
        print(f"warning: {path}: cannot be written: {problem.strerror}", file=sys.stderr)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _words_path() -> Path | None:
    """Shared by the ranks of a pod in one attempt: the starter's file, else one of torchrun's."""
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


def _read(words: int | None) -> str:
    return "" if words is None else os.pread(words, 1 << 16, 0).decode(errors="replace")


def _message(text: str) -> str:
    """The message in an error JSON; "" in anything else, such as the report of a good end."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["message"]["message"])
    return ""


def _leave_words(error: BaseException, words: int | None) -> None:
    """Leave torchelastic's error JSON for torchrun, and for the pod unless a rank has before."""
    text, said = _error_json(error), _read(words)
    if isinstance(error, RankLostError) and _message(said):
        text = said  # the cause, whichever rank's file torchrun reads
    try:
        if words is not None and not said:
            os.pwrite(words, text.encode(), 0)
        if name := os.environ.get(ERROR_FILE_ENV):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
    except OSError as problem:
        print(f"warning: last words not written: {problem}", file=sys.stderr)


def _error_json(error: BaseException) -> str:
    """What torchelastic's own handler writes; small enough for a pod's termination message."""
    stack = error.stacks[:2000] if isinstance(error, HangError) else ""
    if not isinstance(error, UserError):
        stack = "".join(traceback.format_exception(error))[-2000:]
    message = one_line(error)[:MAX_MESSAGE]
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
    """Say what went wrong, once for all ranks, and give the exit status."""
    if isinstance(error, KeyboardInterrupt):
        if rank == 0:
            print("interrupted; start it again to go on from the newest checkpoint")
        return EXIT_INTERRUPTED
    if isinstance(error, StoppedError):
        if rank == 0:
            print(error, flush=True)
        # As without our handling it: torchrun and whoever watches it know what that means.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    speak(error, rank)
    return error.exit_code if isinstance(error, UserError) else 1
