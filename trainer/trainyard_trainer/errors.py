"""Errors a user can cause: one line that says what to change; and how a rank ends with one."""

import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path

from trainyard_api.job import EXIT_CONFIG, RESULT_FILE_ENV

# torchrun tells each worker where to leave its last words.
ERROR_FILE_ENV = "TORCHELASTIC_ERROR_FILE"
# The file becomes the pod's termination message, of which Kubernetes keeps 4096 bytes.
MAX_ERROR_BYTES = 3500


class UserError(Exception):
    """Base: the message is one line, shown without a traceback."""

    exit_code = 1
    # Whether every rank raises it together: then rank 0 speaks for all.
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


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


def explained(error: Exception, step: int, stopping: bool = False) -> Exception:
    """`error` as a UserError where it is torch's way to say that a peer or memory is gone.

    `stopping`: after SIGTERM a lost peer is no news, torchrun ends them all.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError):
        return error
    if _NO_MEMORY.search(text):
        return OutOfMemoryError(
            f"the batch of step {step + 1} doesn't fit into memory: lower config.batch_size, raise"
            " gradient_accumulation_steps or set activation_checkpointing"
            f" ({text.partition('. ')[0][:200]})"
        )
    if _LOST.search(text) and stopping:
        return StoppedError(f"SIGTERM: stopped in step {step + 1}, unsaved: another rank is gone")
    if _LOST.search(text):
        return RankLostError(f"lost another rank in step {step + 1}: {text[:300]}")
    return error


def one_line(error: BaseException) -> str:
    """`ConfigError: config.n_layrs: unknown key; did you mean n_layer?`"""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_last_words(error: BaseException) -> None:
    """Leave torchelastic's error JSON for torchrun and for whoever started the job.

    The latter's file is shared by the ranks of a pod: the first one that fails has the word.
    """
    text = _error_json(error)
    for variable in (ERROR_FILE_ENV, RESULT_FILE_ENV):
        name = os.environ.get(variable)
        if not name:
            continue
        path = Path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if variable == ERROR_FILE_ENV or not path.exists() or path.stat().st_size == 0:
                path.write_text(text)
        except OSError as problem:
            print(f"warning: {path}: cannot be written: {problem.strerror}", file=sys.stderr)


def _error_json(error: BaseException) -> str:
    """What torchelastic's own handler writes; small enough for a pod's termination message."""
    stack = error.stacks[:2000] if isinstance(error, HangError) else ""
    if not isinstance(error, UserError):
        stack = "".join(traceback.format_exception(error))[-2000:]
    message = one_line(error)[:1200]
    extra = {"py_callstack": stack, "timestamp": str(int(time.time()))}
    text = json.dumps({"message": {"message": message, "extraInfo": extra}})
    if len(text) > MAX_ERROR_BYTES:
        extra["py_callstack"] = stack[-500:]
        text = json.dumps({"message": {"message": message[:500], "extraInfo": extra}})
    return text


def exit_with(error: BaseException, rank: int) -> int:
    """Say what went wrong, once for all ranks, and give the exit status."""
    if isinstance(error, KeyboardInterrupt):
        if rank == 0:
            print("interrupted; start it again to go on from the newest checkpoint")
        return 130  # as a shell reports SIGINT
    if isinstance(error, StoppedError):
        if rank == 0:
            print(error, flush=True)
        # As without our handling it: torchrun and whoever watches it know what that means.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    write_last_words(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    if rank == 0:
        print(one_line(error), file=sys.stderr, flush=True)
    elif error.on_every_rank:
        # torchrun ends every worker when the first one exits: let rank 0 speak before that.
        time.sleep(5)
    else:
        print(f"rank {rank}: {one_line(error)}", file=sys.stderr, flush=True)
    return error.exit_code
