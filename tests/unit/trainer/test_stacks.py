"""A stack shows where a rank is, whether it waits for others, and whether it compiles."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from trainyard_trainer.reporting.liveness import is_compiling
from trainyard_trainer.watchdog.stacks import innermost, main_stack, suspicion


def calling_from(file: str) -> Callable[[Callable[[], Any]], Any]:
    """A function that calls another one, and says it comes from `file`."""
    names: dict[str, Any] = {}
    exec(compile("def call(function):\n    return function()", file, "exec"), names)
    call: Callable[[Callable[[], Any]], Any] = names["call"]
    return call


def test_the_main_threads_stack_is_seen_from_another() -> None:
    seen: list[tuple[str, ...]] = []

    def look() -> None:
        seen.append(main_stack())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    place = "tests/unit/trainer/test_stacks.py:"
    (own,) = [frame for frame in seen[0] if place in frame]
    assert own.endswith(" test_the_main_threads_stack_is_seen_from_another")
    assert innermost(seen[0]).startswith(own)
    assert " (in python3." in innermost(seen[0])  # threading, where it joins


def test_the_compiler_is_seen_in_any_thread() -> None:
    assert not is_compiling()
    assert calling_from("/x/torch/_dynamo/convert_frame.py")(is_compiling)
    assert not calling_from("/x/torch/_dynamo/eval_frame.py")(is_compiling)  # runs what it compiled
    done, busy = threading.Event(), threading.Event()

    def compile_backward() -> None:
        busy.set()
        done.wait()

    call = calling_from("/x/torch/_inductor/graph.py")
    thread = threading.Thread(target=call, args=(compile_backward,))
    thread.start()
    busy.wait()
    assert is_compiling()
    done.set()
    thread.join()


@pytest.mark.parametrize(
    ("innermost_frame", "expected"),
    [
        ("torch/distributed/distributed_c10d.py:4181 all_reduce", 0),
        ("torch/autograd/graph.py:1113 _engine_run_backward", 0),
        ("torch/cuda/__init__.py:1374 synchronize", 0),
        ("torch/cuda/streams.py:245 Event.synchronize", 0),
        ("torch/accelerator/__init__.py:270 synchronize", 0),
        ("torch/cuda/__init__.py:430 _lazy_init", 1),
        ("trainyard_trainer/recipes/mine.py:7 loss", 1),
        ("trainyard_trainer/data/loader.py:83 Loader.__next__", 2),
    ],
)
def test_who_waits_for_the_others(innermost_frame: str, expected: int) -> None:
    assert suspicion(("trainyard_trainer/loop.py:79 Loop.run", innermost_frame)) == expected
