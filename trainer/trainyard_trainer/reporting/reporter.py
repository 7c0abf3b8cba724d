"""RunReporter: sends a rank's progress to the console, HTTP report, metrics, history, trackers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from torch.profiler import record_function

from trainyard_api.job import TrainerJob
from trainyard_api.progress import SlowestRank
from trainyard_api.status import CheckpointRef, StepSeconds
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.history import History
from trainyard_trainer.reporting.http_report import ReportServer
from trainyard_trainer.reporting.liveness import Liveness
from trainyard_trainer.reporting.timing import Stragglers, slowest
from trainyard_trainer.reporting.trackers.launcher import TrackerProcesses

MAX_RANKS_IN_HISTORY = 64  # a larger run has its ranks' times in the metrics only

SECONDS_BETWEEN_LOADING = 5.0  # between lines about the data's preparation


@dataclass(frozen=True)
class Progress:
    """A progress line: the steps since the previous one.

    Attributes:
        step: optimizer steps done; `total_steps` of the whole run.
        steps: steps since the previous line.
        loss: mean over these steps and all ranks.
        samples, tokens: trained in these steps, all ranks.
        samples_per_second, tokens_per_second: all ranks; tokens None if the recipe has none.
        data_seconds: how long this rank's steps waited for data.
        step_seconds: statistics over this attempt's steps.
        rank_seconds: each rank's own work per step; empty if it can't be measured.
        gpu_memory_bytes: peak allocated on this rank's GPU.
        slowed_steps: those that a profiler made longer; the rates leave them out if they can.
    """

    step: int
    total_steps: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples: float
    tokens: float
    samples_per_second: float
    tokens_per_second: float | None
    eta_seconds: float
    data_seconds: float
    peak_memory_bytes: int
    gpu_memory_bytes: int | None
    step_seconds: StepSeconds | None
    rank_seconds: list[float] = field(default_factory=list)
    slowed_steps: int = 0


class RunReporter:
    """Reports to the console, the HTTP report, the metrics, the history and the trackers.

    Which of them exist depends on the rank and the phase; callers need not know.

    Attributes:
        liveness: this rank's activity, read by the watchdog.
    """

    def __init__(self, attempt: int, console: Console, server: ReportServer | None) -> None:
        """`server` on rank 0 only."""
        self.console = console
        self.liveness = Liveness()
        self._attempt = attempt
        self._server = server
        self._history: History | None = None
        self._stragglers: Stragglers | None = None
        self._trackers: TrackerProcesses | None = None
        self._evaluating_since = 0.0
        self._said_loading = time.monotonic()

    def open_history(
        self,
        job: TrainerJob,
        config: TrainConfig,
        hosts: list[str],
        resumed_from: int | None,
        settings: dict[str, Any],
    ) -> None:
        """Start metrics.jsonl, its trackers and the comparison of the ranks (rank 0).

        `hosts`: each rank's host name; `settings`: for the attempt's first record.
        """
        run_dir = Path(job.run_dir)
        self._history = History(run_dir, job.run, resumed_from, job.attempt, settings)
        self._trackers = TrackerProcesses(run_dir, config, self.console)
        self._stragglers = Stragglers(hosts, self.console)
        self.update(resumed_from_step=resumed_from)

    def update(self, **values: Any) -> None:
        """Set fields of the ProgressReport that /progress serves."""
        self.liveness.step = values.get("step", self.liveness.step)
        if "phase" in values:
            self.liveness.enter(values["phase"])
            if values["phase"] == "evaluating":
                self._evaluating_since = time.perf_counter()
        if self._server:
            self._server.update(**values)
            metrics = self._server.metrics
            if "total_steps" in values:
                metrics.total_steps.set(values["total_steps"])
            if "ranks_joined" in values:
                metrics.world_size.set(values["ranks_joined"])

    def tick(self) -> None:
        """Part of a step or of an evaluation is done, so this rank does not hang."""
        self.liveness.tick()

    def loading(self, text: str) -> None:
        """Part of the data is ready; `text` says how much."""
        self.liveness.tick()
        if time.monotonic() - self._said_loading > SECONDS_BETWEEN_LOADING:
            self._said_loading = time.monotonic()
            self.console.info(text)
            self.update(message=text)

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """For a `with` block: an activity in more detail than the report's phases."""
        with self.liveness.doing(activity), record_function(activity):
            yield

    def step_done(self, step: int) -> None:
        """An optimizer step is done."""
        self.liveness.step = step
        self.liveness.tick()
        if self._server:
            self._server.update(step=step)
            self._server.metrics.step.set(step)

    def step_timed(self, step: int, seconds: float) -> None:
        """The duration of an optimizer step, known some steps later."""
        if self._server:
            self._server.metrics.step_seconds.observe(seconds)
            # Repeating a step of an earlier attempt is not productive.
            if self._history is None or step > self._history.last_logged_step:
                self._server.metrics.productive_seconds.inc(seconds)

    def stalled(self, seconds: float) -> None:
        """The longest time without progress of any rank."""
        if self._server:
            self._server.metrics.stalled_seconds.set(seconds)

    def progress(self, now: Progress) -> None:
        """Report a progress line."""
        self.update(
            loss=now.loss,
            samples_per_second=now.samples_per_second,
            tokens_per_second=now.tokens_per_second,
            eta_seconds=round(now.eta_seconds),
            step_seconds=now.step_seconds,
            peak_memory_bytes=now.peak_memory_bytes,
        )
        few_ranks = 0 < len(now.rank_seconds) <= MAX_RANKS_IN_HISTORY
        self._record(
            step=now.step,
            loss=now.loss,
            learning_rate=now.learning_rate,
            grad_norm=now.grad_norm,
            tokens_per_second=now.tokens_per_second,
            samples_per_second=now.samples_per_second,
            time=time.time(),
            peak_memory_bytes=now.peak_memory_bytes,
            **({"gpu_memory_bytes": now.gpu_memory_bytes} if now.gpu_memory_bytes else {}),
            **({"rank_step_seconds": now.rank_seconds} if few_ranks else {}),
            **({"slowed_steps": now.slowed_steps} if now.slowed_steps else {}),
        )
        if now.rank_seconds:
            self._compare_ranks(now.rank_seconds, now.steps)
        rate, unit = now.samples_per_second, "samples"
        if now.tokens_per_second:
            rate, unit = now.tokens_per_second, "tokens"
        self.console.step(
            now.step, now.total_steps, now.loss, now.learning_rate, rate, unit, now.eta_seconds
        )
        if self._server:
            self._server.metrics.progress(now)

    def _compare_ranks(self, seconds: list[float], steps: int) -> None:
        if self._server:
            self._server.metrics.set_rank_seconds(seconds)
        if self._stragglers and (rank := slowest(seconds)):
            self._stragglers.update(rank, steps)
            host = self._stragglers.hosts[rank.rank]
            self.update(
                slowest_rank=SlowestRank(
                    rank=rank.rank, host=host, step_seconds=rank.seconds, factor=rank.factor
                )
            )

    def evaluated(
        self, step: int, results: dict[str, float], details: dict[str, Any] | None
    ) -> None:
        """The model was evaluated; `details` are written to evaluation.json."""
        self.update(phase="training", eval_loss=results.get("eval_loss"), evaluation=results)
        self._record(step=step, **results)
        if self._history and details is not None:
            self._history.write_evaluation({"step": step} | results | details)
        if self._server:
            self._server.metrics.set_evaluation(results)
            seconds = time.perf_counter() - self._evaluating_since
            self._server.metrics.evaluation_seconds.inc(seconds)

    def sampled(self, step: int, text: str) -> None:
        """The model has generated a sample."""
        self.console.sample(step, text)
        self.update(sample=text)
        self._record(step=step, sample=text)

    def checkpoint_blocked(self, seconds: float) -> None:
        """How long training has waited for a checkpoint."""
        if self._server:
            self._server.metrics.checkpoint_block.observe(seconds)

    def checkpoint_saved(self, ref: CheckpointRef, seconds: float) -> None:
        """A checkpoint is complete; writing it took `seconds`."""
        self.console.info(f"checkpoint of step {ref.step} saved in {seconds:.1f} s")
        self.update(last_checkpoint=ref)
        if self._server:
            self._server.metrics.checkpoint_write.observe(seconds)
        self.newest_checkpoint(ref.step, ref.time)
        self.draw()

    def newest_checkpoint(self, step: int, created: datetime) -> None:
        """The newest complete checkpoint, saved by this attempt or resumed from."""
        if self._server:
            self._server.metrics.checkpoint_step.set(step)
            self._server.metrics.checkpoint_time.set(created.timestamp())

    def draw(self, last: bool = False) -> None:
        """Redraw the loss curve if the previous one is not recent, or if this is the `last`."""
        if self._history:
            self._history.draw(last)

    def finish_drawing(self) -> None:
        """Wait until the loss curve is on disk."""
        if self._history:
            self._history.finish_drawing()

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """The attempt has ended. If it succeeded, write the result and wait for the trackers."""
        if self._history:
            self._history.end(self.liveness.step, status)
        if self._server and status == "FINISHED":
            self._server.write_result()
        if self._trackers and status == "FINISHED":
            self._trackers.finish()

    def _record(self, **record: Any) -> None:
        """Add a line to the history."""
        if self._history:
            self._history.add(**record, attempt=self._attempt)
