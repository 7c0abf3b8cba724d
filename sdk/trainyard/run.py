"""The run that this process is a rank of."""

from __future__ import annotations

import atexit
import functools
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainyard.reporting import Reporter
from trainyard.stop import should_stop

_run: Run | None = None


def _count(value: Any, before: int | None) -> int | None:
    """The value, if it is a whole number; else what was known before."""
    try:
        return operator.index(value)
    except TypeError:
        return before


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
        step, total: as reported last; None before the first report.
        uid: distinguishes the run from an earlier one of the same name.
        start_directory: with `startFrom`, the directory of the other run, or the path that
            `startFrom` names; only for reading. None without it.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.step: int | None = None
        self.total: int | None = None
        self.uid = os.environ.get("TRAINYARD_RUN_UID", "")
        self.name = os.environ.get("TRAINYARD_RUN", "")
        self.attempt = int(os.environ.get("TRAINYARD_ATTEMPT", "1"))
        self.directory = Path(os.environ.get("TRAINYARD_RUN_DIR", "."))
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        start = os.environ.get("TRAINYARD_START_DIR")
        self.start_directory = Path(start) if start else None
        self._model_taken = False  # whether start_from was read
        self._reporter = Reporter.connect() if self.name and self.rank == 0 else None
        if self._reporter:
            atexit.register(self._reporter.close)

    @functools.cached_property
    def start_from(self) -> Path | None:
        """With `startFrom`, the model of the other run, for `from_pretrained()`; None without it.

        It is the folder in Hugging Face format that the other run has published; `startFrom.step`
        chooses which: the newest, the best or that of a step. Rank 0 verifies the sha256 of
        every file. `startFrom.path` may also be a folder in that format, which is not verified.
        Every attempt finds it, so a script may build its model from it and then load its own newest
        checkpoint. Each rank looks for itself: while the other run still publishes, name a step.

        Raises ConfigError, with what to change, if there is no such model, and CheckpointError if
        it is damaged.
        """
        if self.start_directory is None:
            return None
        from trainyard.start import find_model

        found, what = find_model(self, self.start_directory)
        self._model_taken = True
        # A later attempt begins with the run's own checkpoint.
        if not any((self.directory / "checkpoints").glob("step-*")):
            self._note(startedFrom=what)
        return found

    def report(
        self,
        step: int | None = None,
        total: int | None = None,
        loss: Any = None,
        tokens: Any = None,
        samples: Any = None,
        **metrics: Any,
    ) -> None:
        """Report how far the run is. Never blocks and never raises; call it as often as you like.

        Ranks other than 0 may call it, too; only rank 0 reports. What is left out keeps its last
        value.

        Args:
            step: optimizer steps done.
            total: optimizer steps of the whole run.
            loss: training loss, a number or a tensor with one element.
            tokens, samples: how many tokens or samples all ranks together have processed. Where the
                count begins doesn't matter, as long as it goes up: only its rate is shown.
            metrics: `learning_rate`, `grad_norm`, and results of the newest evaluation, whose names
                begin with `eval_` (`eval_loss` is the evaluation loss). Others are ignored.
        """
        self.step = _count(step, self.step)
        self.total = _count(total, self.total)
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

    def publish(
        self,
        directory: str | Path,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
        golden: str | Sequence[str] | None = None,
    ) -> Path | None:
        """Make a folder in Hugging Face format a model of the run: servers load the newest.

        The folder is copied to models/step-N in the run's directory, with the sha256 of every file,
        and appears there complete. It needs config.json and weights in safetensors files, as
        save_pretrained() writes them; pickled files are left out. The last three models are kept,
        and the one with the lowest eval_loss: servers load it if they are told to serve the best.

        Ranks other than 0 may call it, too; only rank 0 publishes.

        Args:
            directory: the folder, as save_pretrained() writes it.
            metrics: results of the model, such as eval_loss, without which it can't be the best.
            step: the model's optimizer steps; by default those reported last.
            golden: a prompt for a language model, or some texts for a classifier. The answers
                of the published files are recorded in golden.json, and a server that computes other
                answers does not use the model. To record them, rank 0 loads the model with
                transformers, on the CPU in fp32.

        Returns the path of the copy; None on other ranks. Raises ConfigError or CheckpointError,
        which say what to change.
        """
        if self.rank != 0:
            return None
        from trainyard.publish import publish_folder

        return publish_folder(self, Path(directory), metrics, step, golden)

    def _note(self, values: Mapping[str, Any] | None = None, **documents: Any) -> None:
        """Report what is not a number: see Reporter.put."""
        if self._reporter is not None:
            self._reporter.put(dict(values or {}), documents=documents)

    def should_stop(self) -> bool:
        """Whether to save and end now: the run is suspended, or its pod is taken away.

        Call it after each step, on every rank: all get the same answer at the same step, even if
        only one got the signal. For this the ranks communicate about once a second, over a gloo
        group of their own, if torch.distributed is initialised. When it has returned True, save a
        checkpoint and leave the loop. The process then ends by SIGTERM, whatever its exit status,
        so that the run does not count as finished.

        The first call installs a handler for SIGTERM, in place of any other. Before that call,
        the signal ends the process.
        """
        return should_stop()
