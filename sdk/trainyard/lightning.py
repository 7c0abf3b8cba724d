"""For Lightning:

Trainer(..., callbacks=[TrainyardCallback()])
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from trainyard.run import init
from trainyard.stop import take_over


class TrainyardCallback(pl.Callback):
    """Reports the step and the logged metrics, and saves and stops when the run is to stop.

    Of the logged metrics it reports `loss`, `learning_rate`, `grad_norm` and those that begin with
    `eval_`; `val_loss` is shown as the evaluation loss.

    The checkpoint is `last.ckpt` in the run's directory; the next attempt continues with
    `trainer.fit(..., ckpt_path=callback.resume_path)`, which is None if there is none yet.
    """

    def __init__(self) -> None:
        self.run = init()
        self.checkpoint = self.run.directory / "last.ckpt"

    @property
    def resume_path(self) -> str | None:
        return str(self.checkpoint) if self.checkpoint.exists() else None

    def on_train_start(self, *_: Any) -> None:
        # Lightning has just installed its own handler, which ends each rank after a different step.
        take_over()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        total = trainer.estimated_stepping_batches
        shown = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if name in ("loss", "learning_rate", "grad_norm") or name.startswith("eval_")
        }
        whole = int(total) if total != float("inf") else None
        self.run.report(trainer.global_step, total=whole, **shown)
        if self.run.should_stop():
            trainer.save_checkpoint(self.checkpoint)
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking and "val_loss" in trainer.callback_metrics:
            self.run.report(eval_loss=trainer.callback_metrics["val_loss"])
