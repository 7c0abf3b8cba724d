"""Threads that compute have a lower priority than the event loop, and so have those they start."""

import os
import sys
import threading

import pytest

from trainyard_serving.concurrency import NICENESS, computing_thread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities per thread are Linux's")


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_computing_thread_and_its_threads_have_a_lower_priority() -> None:
    before = nice()
    found: list[int] = []

    def compute() -> None:
        found.append(nice())
        pool = threading.Thread(target=lambda: found.append(nice()))
        pool.start()
        pool.join()

    thread = computing_thread(compute, "compute")
    thread.start()
    thread.join()
    assert found == [before + NICENESS] * 2
    assert nice() == before
