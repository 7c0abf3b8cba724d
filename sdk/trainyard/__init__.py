"""What a script of your own imports from Trainyard.

Two lines show its progress:

    run = trainyard.init()
    run.report(step=step, total=steps, loss=loss, tokens=tokens)

Needs Python 3.9 and nothing else. Outside a run nothing is reported, so the same script runs
anywhere. Checkpointer, StepSampler, run.publish and run.start_from need Python 3.11 and the extra
`checkpoint`, and are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainyard.run import Run, init

if TYPE_CHECKING:
    from trainyard.checkpointer import Checkpointer
    from trainyard.data import StepSampler

__all__ = ["Checkpointer", "Run", "StepSampler", "init"]


def __getattr__(name: str) -> Any:
    if name == "Checkpointer":
        from trainyard.checkpointer import Checkpointer

        return Checkpointer
    if name == "StepSampler":
        from trainyard.data import StepSampler

        return StepSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
