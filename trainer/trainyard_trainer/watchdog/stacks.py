"""The main thread's Python stack in short form, and what it says about a hang."""

import functools
import re
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

MAX_FRAMES = 16  # innermost ones
# Frames without information: they only start the program.
_WRAPPERS = ("<frozen ", "trainyard_trainer/__main__.py")
_LIBRARIES = ("torch/", "python3.")
# Where a rank waits for the others: collectives, and the backward pass that DDP runs them in.
_COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py")
# And on GPUs, where a collective is only launched: a rank then waits for its own GPU.
_SYNCHRONISING = re.compile(r"torch/(cuda|accelerator)/\w+\.py:\d+ (\w+\.)?synchronize$")
_LOADING = "trainyard_trainer/data/loader.py"


def main_stack() -> tuple[str, ...]:
    """`trainyard_trainer/loop.py:109 Loop.run`, ...: outermost first, as in a traceback."""
    main = threading.main_thread().ident
    frame: FrameType | None = sys._current_frames().get(main) if main is not None else None
    frames: list[str] = []
    while frame is not None and len(frames) < MAX_FRAMES:
        code = frame.f_code
        name = _short(code.co_filename)
        if not name.startswith(_WRAPPERS):
            frames.append(f"{name}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(frames))


def innermost(stack: Sequence[str]) -> str:
    """The last frame of the run's own code, and the library call it is in."""
    own = [frame for frame in stack if not frame.startswith(_LIBRARIES)]
    if not own or own[-1] == stack[-1]:
        return stack[-1] if stack else "an unknown position"
    return f"{own[-1]} (in {stack[-1]})"


def suspicion(stack: Sequence[str]) -> int:
    """How likely this rank blocks the others: 0 if it waits in a collective or for its GPU, 2 if it
    waits for its own data, else 1."""
    if any(frame.startswith(_LOADING) for frame in stack):
        return 2
    if stack and _SYNCHRONISING.match(stack[-1]):
        return 0
    return 0 if any(frame.startswith(_COLLECTIVES) for frame in stack) else 1


@functools.lru_cache(maxsize=4096)
def _short(filename: str) -> str:
    """A file name relative to the import path."""
    stdlib = str(Path(sysconfig.get_path("stdlib")).parent)
    for folder in sorted({*sys.path, stdlib} - {""}, key=len, reverse=True):
        if filename.startswith(folder.rstrip("/") + "/") and folder != sysconfig.get_path("stdlib"):
            return filename[len(folder.rstrip("/")) + 1 :]
    return filename
