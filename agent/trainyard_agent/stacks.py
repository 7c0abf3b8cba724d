"""Reads a rank's Python stack from outside, with py-spy, and says whether it is in a collective."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from trainyard_agent import procfs

MAX_FRAMES = 24  # innermost ones
_TIMEOUT = 10.0
_NO_ANSWER = f"py-spy did not answer within {_TIMEOUT:.0f} s"
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3.", "<frozen ")
# Where a rank waits for the others: collectives, and the backward pass that DDP runs them in.
_BACKWARD = "torch/autograd/graph.py"
_COLLECTIVES = ("torch/distributed/", "torch/nn/parallel/distributed.py", _BACKWARD)
# And on GPUs, where a collective is only launched: a rank then waits for its own GPU.
_SYNCHRONISING = re.compile(r"torch/(cuda|accelerator)/\w+\.py:\d+ synchronize$")
_CUDA = re.compile(r"libcuda(rt)?[.-]")  # copies, and launches while the GPU's queue is full
_CUDA_COMPILER = re.compile(r"libnvidia-ptxjitcompiler|libnvrtc")  # works, on the CPU


class Stack(NamedTuple):
    """The stack of a process's main thread.

    Attributes:
        frames: `train.py:12 batch`, outermost first; empty if it could not be read.
        holds_gil: it runs Python code right now.
        why: the reason if it could not be read.
        values: stands for the local variables; others, such as a loop's counter, mean work.
        own: the innermost frame that is not a library's.
        collective: it is in a collective or in the backward pass, or waits for its GPU.
        backward: it is in the backward pass.
        cuda: it is in a call of CUDA; known of native stacks only.
    """

    frames: tuple[str, ...]
    holds_gil: bool
    why: str
    values: int = 0
    own: str = ""
    collective: bool = False
    backward: bool = False
    cuda: bool = False


def read(pid: int, native: bool = False) -> Stack:
    """The stack of a process, or of the program that it, as a wrapper, has started.

    `native`: also whether it is in a call of CUDA. That pauses it for a second or so, and takes
    about 110 MB meanwhile.
    """
    program = py_spy()
    if program is None:
        return Stack((), False, "py-spy is not installed")
    stack = Stack((), False, "")
    for each in procfs.programs(pid):
        stack = _read(program, each, native)
        # py-spy can't do it on every processor. A rank that it can't stop takes as long again.
        if native and not stack.frames and stack.why != _NO_ANSWER:
            stack = _read(program, each, native=False)
        if stack.frames:
            break
    return stack


def py_spy() -> str | None:
    """Its program: beside the agent in a pod, else beside the Python that runs the agent."""
    for folder in (Path(__file__).resolve().parents[1], Path(sys.executable).parent):
        found = shutil.which("py-spy", path=str(folder))
        if found:
            return found
    return shutil.which("py-spy")


def _read(program: str, pid: int, native: bool) -> Stack:
    # It isn't paused: a stack that changes while it is read is one of a rank that works. Native
    # frames can't be read so.
    how = "--native" if native else "--nonblocking"
    command = [program, "dump", how, "--locals", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
        )
        return parse(json.loads(done.stdout), pid)
    except subprocess.TimeoutExpired:
        return Stack((), False, _NO_ANSWER)
    except OSError as error:
        return Stack((), False, f"py-spy: {error}")
    except ValueError:
        return Stack((), False, _reason(done.stderr.decode(errors="replace")))
    except (KeyError, TypeError, AttributeError) as error:  # of another version
        return Stack((), False, f"py-spy's answer is not understood: {error!r}"[:200])


def _reason(text: str) -> str:
    """Why py-spy read nothing, and what to do."""
    if "ermission" in text or "not permitted" in text:
        return "the kernel does not allow reading it: set kernel.yama.ptrace_scope to 0 on the node"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "py-spy printed nothing")[:200]


def parse(threads: Any, pid: int) -> Stack:
    """The main thread of py-spy's document: a list of threads, innermost frame first."""
    for thread in threads:
        if thread["os_thread_id"] == pid or thread["thread_name"] == "MainThread":
            break
    else:
        return Stack((), False, "it has no main thread")
    native = list(itertools.takewhile(lambda each: each["module"], thread["frames"]))
    libraries = [Path(each["module"]).name for each in native]
    cuda = any(map(_CUDA.match, libraries)) and not any(map(_CUDA_COMPILER.match, libraries))
    python = [each for each in thread["frames"] if not each["module"]]
    listed = [(each["short_filename"] or each["filename"], each) for each in python]
    frames = [f"{name}:{each['line']} {each['name']}" for name, each in listed]
    own = next((f for f, (_, each) in zip(frames, listed) if is_own(each["filename"])), "")
    torch = _innermost_torch([name for name, _ in listed])
    return Stack(
        frames=tuple(reversed(frames[:MAX_FRAMES])),
        holds_gil=bool(thread["owns_gil"]),
        why="",
        values=hash(json.dumps([each["locals"] for _, each in listed])),
        own=own,
        collective=any(name.startswith(_COLLECTIVES) for name in torch)
        or cuda
        or bool(frames and _SYNCHRONISING.match(frames[0])),
        backward=any(name.startswith(_BACKWARD) for name in torch),
        cuda=cuda,
    )


def is_own(filename: str) -> bool:
    return not any(part in filename for part in _LIBRARIES)


def _innermost_torch(names: list[str]) -> list[str]:
    """The innermost files, as far as they are torch's: what lies below called it."""
    count = next((i for i, name in enumerate(names) if not name.startswith("torch/")), len(names))
    return names[:count]
