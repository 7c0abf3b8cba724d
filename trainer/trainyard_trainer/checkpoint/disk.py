"""Why something could not be written, and how much room it needs."""

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from trainyard_trainer.errors import CheckpointError, DiskFullError, UserError, type_and_message

# torch's archive writer reports a short write by these names; with less free space than _FULL the
# reason is a full disk.
_SHORT_WRITE = re.compile(r"inline_container|PytorchStreamWriter")
_FULL = 1 << 20  # bytes
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # EFBIG: a limit on the size of a file
_MIB = 1 << 20


def failed_call(error: BaseException, directory: Path) -> tuple[int | None, BaseException]:
    """The errno of the system call behind `error`, and the innermost error if there is none."""
    pending = [error]
    while pending:
        cause = pending.pop()
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno, cause
        if code := re.search(r"\(os error (\d+)\)", str(cause)):  # safetensors' format
            return int(code[1]), cause
        if _SHORT_WRITE.search(str(cause)) and shutil.disk_usage(directory).free < _FULL:
            return errno.ENOSPC, cause
        failures = getattr(cause, "failures", {})  # of torch's CheckpointException, by rank
        error = error if failures else cause
        pending.extend(wrapped[0] for wrapped in failures.values())
        pending.extend(e for e in (cause.__cause__, cause.__context__) if e is not None)
    return None, error


def reason(error: BaseException, directory: Path) -> str:
    """The operating system's message, from any wrapped cause; else the innermost error's."""
    code, innermost = failed_call(error, directory)
    return os.strerror(code) if code else type_and_message(innermost)[:300]


def free_space(directory: Path) -> str:
    """` (12.3 MiB free)`, or nothing if that is unknown."""
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(directory).free / _MIB:,.1f} MiB free)"
    return ""


def kind(error: BaseException, directory: Path) -> type[UserError]:
    """DiskFullError if what was written does not fit into `directory`, else CheckpointError."""
    code, _ = failed_call(error, directory)
    return DiskFullError if code in _NO_ROOM else CheckpointError


def what_to_do(cls: type[UserError], size: int) -> str:
    """The end of the message of an error of class `cls` about `size` bytes."""
    if cls is not DiskFullError:
        return "; when that is fixed, start the run again"
    return f"; it needs {max(0.1, size / _MIB):,.1f} MiB: free some space, and start the run again"
