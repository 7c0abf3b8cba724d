"""SIGKILL before any chosen file operation: a process is killed between two lines, repeatably."""

import os
import signal
import sys
from collections.abc import Callable

# What Python announces of a program's work on files, each just before it happens.
_OPERATIONS = {
    *("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.scandir"),
    *("os.listdir", "shutil.rmtree", "fcntl.flock"),
}


def die_before(count: int, below: str) -> None:
    """Kill this process just before its `count`-th file operation (from 0) on paths in `below`."""
    left = count

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and (event == "fcntl.flock" or below in str(arguments[0])):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def killed_before(count: int, below: str, action: Callable[[], object]) -> bool:
    """Run `action` in a process of its own that dies at that point; False if it ends before."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            die_before(count, below)
            action()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the action failed: exit status {code}"
    return code != 0
