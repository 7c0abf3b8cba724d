"""How long a test waits for what must happen: to detect hangs, never to judge speed.

One number for all: on a virtual machine whose host took CPU time away, a training run of 8 s was
seen to take 87, and no test may fail for that.
"""

import asyncio
import inspect
import time
from collections.abc import Callable

SECONDS = 300.0
POLL_SECONDS = 0.02


def until(
    condition: Callable[[], object], what: str = "", context: Callable[[], str] = str
) -> None:
    """Poll until `condition` holds; else fail at the caller's line, with `what` and `context()`."""
    __tracebackhide__ = True
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise _in_vain(what, context())
        time.sleep(POLL_SECONDS)


async def until_async(condition: Callable[[], object], what: str = "") -> None:
    """As `until`, while the event loop keeps running; `condition` may be a coroutine function."""
    __tracebackhide__ = True
    deadline = time.monotonic() + SECONDS
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        if time.monotonic() > deadline:
            raise _in_vain(what)
        await asyncio.sleep(POLL_SECONDS)


def _in_vain(what: str, context: str = "") -> AssertionError:
    said = f"waited {SECONDS:g} s in vain" + (f": {what}" if what else "")
    return AssertionError("\n".join(filter(None, (said, context))))
