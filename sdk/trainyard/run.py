"""The run that this process is a rank of."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from trainyard.reporting import Reporter
from trainyard.stop import should_stop

_run: Run | None = None


def init() -> Run:
    """The run of this process; the same object each time. Outside a run it reports nothing."""
    global _run
    if _run is None or _run.pid != os.getpid():
        _run = Run()
    return _run


class Run:
    """One rank's view of its run.

    Attributes:
        name: the run's name; empty outside a run.
        attempt: number of this attempt, from 1.
        directory: a directory that outlives the attempt, the same for all ranks: write checkpoints
            there, and look for the newest one when you start. Outside a run the working directory.
        rank, world_size: as torchrun sets them; 0 and 1 without it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.name = os.environ.get("TRAINYARD_RUN", "")
        self.attempt = int(os.environ.get("TRAINYARD_ATTEMPT", "1"))
        self.directory = Path(os.environ.get("TRAINYARD_RUN_DIR", "."))
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._reporter = Reporter.connect() if self.name and self.rank == 0 else None
        if self._reporter:
            atexit.register(self._reporter.close)

    def report(
        self,
        step: int | None = None,
        total: int | None = None,
        loss: Any = None,
        tokens: Any = None,
        samples: Any = None,
        **metrics: Any,
    ) -> None:
        """Say how far the run is. Never blocks and never raises; call it as often as you like.

        Ranks other than 0 may call it, too; only rank 0 reports. What is left out keeps its value.

        Args:
            step: optimizer steps done.
            total: optimizer steps of the whole run.
            loss: training loss, a number or a tensor with one element.
            tokens, samples: how many all ranks together have been trained on. Where the count
                begins doesn't matter, as long as it goes up: only its rate is shown.
            metrics: `learning_rate` and `grad_norm`; names that begin with `eval_` are of the
                newest evaluation (`eval_loss` is the evaluation loss).
        """
        if self._reporter is None:
            return
        values = {
            "current_step": step,
            "total_steps": total,
            "loss": loss,
            "num_input_tokens_seen": tokens,
            "num_input_samples_seen": samples,
            **metrics,
        }
        self._reporter.put({name: value for name, value in values.items() if value is not None})

    def log_sample(self, text: str) -> None:
        """Show a text, such as one that the model has just generated, as the newest sample."""
        if self._reporter is not None:
            self._reporter.put({}, sample=str(text))

    def should_stop(self) -> bool:
        """Whether to save and end now: the run was suspended, or its pod is taken away.

        Call it after each step, on every rank: all get the same answer at the same step, even if
        only one got the signal. For that they communicate about once a second, over a gloo group of
        their own, if torch.distributed is initialised. When it has returned True, save a checkpoint
        and leave the loop. However the process then ends, it does so by SIGTERM, so that the run is
        not taken for finished.

        The first call installs a handler for SIGTERM, in place of any other: before it the signal
        ends the process.
        """
        return should_stop()
