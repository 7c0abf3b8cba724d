"""For the Trainer of transformers, and trainers that are built on it:

Trainer(..., callbacks=[TrainyardCallback()])
"""

from __future__ import annotations

from typing import Any

import transformers

from trainyard.run import init


class TrainyardCallback(transformers.TrainerCallback):
    """Reports what the Trainer logs, and saves and stops when the run is to stop.

    The next attempt continues with `trainer.train(resume_from_checkpoint=...)`.
    """

    def __init__(self) -> None:
        self.run = init()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        known = ("loss", "learning_rate", "grad_norm")
        shown = {
            name: value
            for name, value in (logs or {}).items()
            if name in known or name.startswith("eval_")
        }
        tokens = state.num_input_tokens_seen or (logs or {}).get("num_tokens")  # the latter of TRL
        self.run.report(state.global_step, total=state.max_steps, tokens=tokens, **shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.report(state.global_step, total=state.max_steps)
        if self.run.should_stop():
            control.should_save = control.should_training_stop = True
