"""The main thread's Python stack in short, and what can be read from it."""

import functools
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

MAX_FRAMES = 16  # innermost ones
# Calls that run the program and say nothing about it.
_WRAPPERS = ("<frozen ", "trainyard_trainer/__main__.py")
_LIBRARIES = ("torch/", "python3.")
# Where a rank waits for the others: collectives, and the backward pass that DDP runs them in.
_COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py")
# In use while a graph is made and compiled, but not when it runs.
_COMPILER = (
    "torch/_dynamo/convert_frame.py",
    "torch/_inductor/graph.py",
    "torch/_inductor/async_compile.py",
)
_LOADING = "trainyard_trainer/loader.py"


def main_stack() -> tuple[str, ...]:
    """`trainyard_trainer/loop.py:109 Loop.run`, ...: outermost first, as in a traceback."""
    main = threading.main_thread().ident
    frame: FrameType | None = sys._current_frames().get(main) if main is not None else None
    found: list[str] = []
    while frame is not None and len(found) < MAX_FRAMES:
        code = frame.f_code
        name = _short(code.co_filename)
        if not name.startswith(_WRAPPERS):
            found.append(f"{name}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(found))


def is_compiling() -> bool:
    """Whether torch.compile is at work: in the main thread, or in autograd's for the backward pass.

    It may be at any step: another shape of batch is reason enough.
    """
    for frame in sys._current_frames().values():
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code.co_filename.endswith(_COMPILER):
                return True
            outer = outer.f_back
    return False


def innermost(stack: Sequence[str]) -> str:
    """The last frame of the run's own code, and the library call it is in."""
    own = [frame for frame in stack if not frame.startswith(_LIBRARIES)]
    if not own or own[-1] == stack[-1]:
        return stack[-1] if stack else "an unknown place"
    return f"{own[-1]} (in {stack[-1]})"


def suspicion(stack: Sequence[str]) -> int:
    """How likely it is for this rank to hold up the others: 0 if it waits in a collective itself,
    2 if it waits for its own data, else 1."""
    if any(frame.startswith(_LOADING) for frame in stack):
        return 2
    return 0 if any(frame.startswith(_COLLECTIVES) for frame in stack) else 1


@functools.lru_cache(maxsize=4096)
def _short(filename: str) -> str:
    """A file's name as an import would find it: without the folder its package lies in."""
    stdlib = str(Path(sysconfig.get_path("stdlib")).parent)
    for folder in sorted({*sys.path, stdlib} - {""}, key=len, reverse=True):
        if filename.startswith(folder.rstrip("/") + "/") and folder != sysconfig.get_path("stdlib"):
            return filename[len(folder.rstrip("/")) + 1 :]
    return filename
