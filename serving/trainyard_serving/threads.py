"""Threads that compute give way to the event loop, which answers probes and refuses what is too
much: on a busy machine these take milliseconds, a batch takes hundreds."""

import os
import sys
import threading
from collections.abc import Callable

NICENESS = 5  # a third of the CPU time of a thread of the usual priority, while both want it


def computing_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """A thread of lower priority; so are those that it starts, such as a pool of PyTorch's or
    ONNX Runtime's."""

    def lower() -> None:
        if sys.platform == "linux":  # elsewhere priority is the whole process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _now() + NICENESS)
        run()

    return threading.Thread(target=lower, name=name)


def _now() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
