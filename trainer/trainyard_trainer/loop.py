"""The training loop."""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from trainyard_api.job import TrainerJob
from trainyard_trainer.checkpoint.checkpointer import Checkpointer, Saved
from trainyard_trainer.checkpoint.disk import what_to_do
from trainyard_trainer.checkpoint.epoch_file import write_epoch_file
from trainyard_trainer.checkpoint.export import Exporter
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.loader import Loader, MicroBatches
from trainyard_trainer.data.sampling import Batch, epoch_ended
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.distributed.stop import Stop
from trainyard_trainer.errors import (
    CheckpointError,
    DiskFullError,
    NonFiniteLossError,
    UserError,
)
from trainyard_trainer.evaluate import evaluate
from trainyard_trainer.optim import learning_rate, set_learning_rate
from trainyard_trainer.profiler import Profiler
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.reporting.reporter import Progress, RunReporter
from trainyard_trainer.reporting.timing import Throughput, peak_memory_bytes, since_start


@dataclass(frozen=True)
class Training:
    """The state and settings of a training loop.

    Attributes:
        start: completed optimizer steps; 0 in a new run.
        metrics: those of the checkpoint of step `start`.
        losses: of the steps since the last progress line, as that checkpoint has them; the loop
            keeps the list up to date.
        branched: that checkpoint is another run's; this run has none yet.
    """

    job: TrainerJob
    config: TrainConfig
    recipe: Recipe
    parallel: Parallel
    optimizer: torch.optim.Optimizer
    checkpointer: Checkpointer
    exporter: Exporter
    reporter: RunReporter
    start: int
    metrics: dict[str, float]
    losses: list[float]
    branched: bool = False


class Loop:
    """Trains from the first step to the last; every rank makes the same calls in the same order.

    Attributes:
        step: completed optimizer steps; also the position in the data.
        metrics: the newest training and evaluation metrics.
        unsaved: why there is no checkpoint of the last step, if none could be written.
    """

    unsaved: UserError | None = None

    def __init__(self, training: Training) -> None:
        self.job = job = training.job
        self.config = config = training.config
        self.recipe = recipe = training.recipe
        self.parallel = training.parallel
        self.group: Group = training.parallel.group
        self.optimizer = training.optimizer
        self.checkpointer = training.checkpointer
        self.exporter = training.exporter
        self.reporter = training.reporter
        self.start = self.step = start = training.start
        self.profiler = Profiler(Path(job.run_dir), config, self.group, start, self.reporter)
        self._branched = training.branched
        self.metrics = training.metrics
        micro_batches = MicroBatches(
            config, job.seed, len(recipe.train), recipe.weights, self.group, start
        )
        self.loader = Loader(recipe.train, micro_batches)
        self.throughput = Throughput(
            config.batch_size, recipe.tokens_per_sample, config.timing_warmup_steps
        )
        self._losses = torch.zeros(config.log_steps, device=self.group.device)
        self._norms = torch.zeros_like(self._losses)  # of the gradients, the same on every rank
        self._unread = 0  # losses still on the device
        self._window = training.losses  # those read since the last progress line
        self._logged = start  # step of that line, or the first of this attempt
        self._work = torch.zeros(self.group.world_size)  # each rank's own seconds since then
        self._saving: int | None = None  # step of the newest save that was started
        self._saved: int | None = None  # and of the newest that succeeded (rank 0)
        self._blocked: float | None = None  # seconds that training has waited for the newest save

    def run(self, stop: Stop) -> None:
        """Train to max_steps, with logging, evaluation and checkpoints.

        Raises StoppedError after the ranks agreed to `stop` and saved the step.
        """
        config, last = self.config, self.config.max_steps
        self.reporter.update(
            phase="training", step=self.step, total_steps=last, batch_size=config.batch_size
        )
        if self.step == 0 and config.eval_on_start:
            self._evaluate(prefix="base_")
        if self._branched:
            self._save()  # from now on the run depends on no other
        began = time.perf_counter()
        while self.step < last:
            self.profiler.begin(self.step + 1)
            norm = self._train_step()
            if self.step == self.start + 1:
                self.reporter.console.info(f"first step done after {since_start():.1f} s")
                if self.parallel.compiler:
                    self.reporter.console.info(self.parallel.compiler.report())
                self.checkpointer.preload()
            done = self.step == last
            epoch = None
            if config.num_epochs is not None:
                epoch = epoch_ended(self.step, config.batch_size, len(self.recipe.train))
            if self.step % config.log_steps == 0 or done or epoch:
                rate = (time.perf_counter() - began) / (self.step - self.start)
                self._log(norm, eta=rate * (last - self.step))
            if done or epoch or _due(self.step, config.eval_steps):
                self._evaluate()
            if done or _due(self.step, config.sample_steps):
                self._sample()
            if epoch:
                self._write_epoch_file(epoch)
            if not done and _due(self.step, config.export_steps):
                self._export()
            if done or epoch or self.step % self.job.checkpoint.every_steps == 0:
                self._save()
            if not done:  # whether the last one succeeded decides how the run ends
                self._report_save(self.checkpointer.poll())
            self.profiler.end(self.step)
            if not done and stop.agreed(self.step):
                self._save_and_stop(stop)
        self._finish_saving()
        self.profiler.close()

    def _train_step(self) -> torch.Tensor:
        """One optimizer step; the gradient norm, still on the device."""
        config, parallel, part = self.config, self.parallel, self.profiler.part
        parallel.timer.begin()
        set_learning_rate(self.optimizer, learning_rate(config, self.step))
        accumulation = config.gradient_accumulation_steps
        for micro in range(accumulation):
            with part("data"):
                batch, factor = self._next_batch()
            with parallel.accumulate(last=micro == accumulation - 1):
                with part("forward"), parallel.autocast():
                    loss = self.recipe.loss(parallel.model, batch)
                with part("backward"):
                    torch.autograd.backward(loss * (parallel.scaler.scale * factor))
            self._losses[self._unread] += loss.detach() * factor
            self.loader.prefetch()  # while the GPU computes
            self.reporter.tick()
        with part("clipping"):
            norm = self._norms[self._unread] = parallel.clip_gradients(config.max_grad_norm)
        self._wait_for_copy()
        with part("optimizer"):
            if parallel.scaler.update(norm):
                self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        # Evaluation metrics do not apply to later steps; those of the untrained model are kept.
        kept = (name for name in self.metrics if name == "loss" or name.startswith("base_"))
        self.metrics = {name: self.metrics[name] for name in kept}
        self._unread += 1
        parallel.timer.end()
        self.reporter.step_done(self.step)
        return norm

    def _next_batch(self) -> tuple[Batch, float]:
        """This rank's next micro-batch, and the weight of its loss in the step's loss."""
        return next(self.loader)

    def _read_losses(self) -> None:
        """Read the losses since the last time, averaged over the ranks, and the step times.

        Raises NonFiniteLossError on every rank, since all have the average; also for a non-finite
        gradient, which has corrupted the weights although only the next loss would show it.
        """
        if self._unread == 0:
            return
        times = self.parallel.timer.read()
        work = torch.zeros(self.group.world_size)
        work[self.group.rank] = sum(step.work for step in times)
        # One all-reduce for all values: each rank's work has its own element.
        unread = [self._losses[: self._unread], self._norms[: self._unread]]
        read = self.group.sum(torch.cat([*unread, work.to(self._losses.device)])).cpu()
        losses, norms = (read[: 2 * self._unread] / self.group.world_size).view(2, -1).tolist()
        self._work += read[2 * self._unread :]
        first = self.step - self._unread + 1
        for step, step_time in enumerate(times, first):
            self.throughput.add(step_time.seconds, slowed=self.profiler.slows(step))
            self.reporter.step_timed(step, step_time.seconds)
        self._losses.zero_()
        self._unread = 0
        self._window.extend(losses)
        for step, loss, norm in zip(itertools.count(first), losses, norms, strict=False):
            if not math.isfinite(loss):
                self._stop_non_finite(f"loss of step {step} is {loss}")
            if not math.isfinite(norm) and not self.parallel.scaler.enabled:
                self._stop_non_finite(f"gradient of step {step} is {norm}, its loss {loss:.4f}")
        if self.parallel.scaler.exhausted:
            self._stop_non_finite(
                f"gradient of step {self.step} overflows fp16 at every loss scale"
            )

    def _stop_non_finite(self, what: str) -> NoReturn:
        """Fail the run, because all later steps would be wrong; first wait for a running save."""
        self._report_save(self.checkpointer.wait())
        raise NonFiniteLossError(
            f"the {what}; lower config.learning_rate ({self.config.learning_rate:g}) or lengthen"
            " warmup_steps: the run then resumes from its newest checkpoint"
        )

    def _log(self, norm: torch.Tensor, eta: float) -> None:
        """Report the steps since the last progress line; `eta` in seconds."""
        self._read_losses()
        # The line may begin in an earlier attempt, of which the losses are known, the times not.
        loss = sum(self._window) / len(self._window)
        steps = self.step - self._logged
        samples_per_second, tokens_per_second = self.throughput.rates()
        slowed = sum(map(self.profiler.slows, range(self._logged + 1, self.step + 1)))
        # The recording makes its rank slower than the others, which is no fault of its node.
        has_rank_seconds = self.parallel.measures_waiting and not slowed
        samples = steps * self.config.batch_size
        on_gpu = self.group.device.type == "cuda"
        self.metrics["loss"] = loss
        self.reporter.progress(
            Progress(
                step=self.step,
                total_steps=self.config.max_steps,
                steps=steps,
                loss=loss,
                learning_rate=learning_rate(self.config, self.step - 1),
                grad_norm=float(norm),
                samples=samples,
                tokens=samples * self.recipe.tokens_per_sample,
                samples_per_second=samples_per_second,
                tokens_per_second=tokens_per_second,
                eta_seconds=eta,
                data_seconds=self.loader.seconds,
                peak_memory_bytes=peak_memory_bytes(self.group.device),
                gpu_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
                step_seconds=self.throughput.step_seconds(),
                rank_seconds=(self._work / steps).tolist() if has_rank_seconds else [],
                slowed_steps=slowed,
            )
        )
        self._window.clear()
        self._logged, self.loader.seconds = self.step, 0.0
        self._work.zero_()

    def _evaluate(self, prefix: str = "") -> None:
        """Evaluate the model on held-out samples; `prefix` of the metrics' names."""
        self.reporter.update(phase="evaluating")
        with self.profiler.part("evaluating"):
            sums = evaluate(self.recipe, self.parallel, self.config, self.reporter.tick)
        results = self.recipe.summarise(sums)
        self.metrics |= {prefix + name: value for name, value in results.items()}
        line = f"step {self.step}: {_format_metrics(results)}"
        base = {n: self.metrics[f"base_{n}"] for n in results if f"base_{n}" in self.metrics}
        if base and not prefix:
            line += f" (before training: {_format_metrics(base)})"
        self.reporter.console.info(line)
        if table := self.recipe.table(sums):
            self.reporter.console.info(table)
        self.reporter.evaluated(self.step, results, self.recipe.details(sums))

    def _write_epoch_file(self, epoch: int) -> None:
        """Write the epoch's .pt file, before its checkpoint: a resumed run does not write it."""
        name = self.recipe.epoch_file(epoch)
        if name is None:
            return
        self._read_losses()
        run_dir, settings = Path(self.job.run_dir), self.config.model_dump(mode="json")
        try:
            with self.reporter.doing("saving"):
                path = write_epoch_file(
                    run_dir, name, epoch, self.parallel, self.optimizer, self.metrics, settings
                )
        except OSError as error:
            self.reporter.console.warn(f"{name} not written: {error.strerror}; training continues")
            return
        self.reporter.console.info(f"epoch {epoch} written to {path}")

    @torch.no_grad()
    def _sample(self) -> None:
        """Generate a sample, on every rank, as FSDP requires."""
        self.parallel.module.eval()
        with self.reporter.doing("sampling"):
            text = self.recipe.sample(self.parallel.module, self.step)
        self.parallel.module.train()
        if text is not None:
            self.reporter.sampled(self.step, text)

    def _save(self) -> None:
        """Start a checkpoint of this step, which is written in the background."""
        self._read_losses()
        began = time.perf_counter()
        with self.reporter.doing("saving"):  # the previous one may still be running
            self._report_save(self.checkpointer.wait())
        with self.reporter.doing("checkpointing"):
            self.checkpointer.save(self.step, self.config.max_steps, self.metrics)
        self._saving = self.step
        self._blocked = time.perf_counter() - began

    def _export(self) -> None:
        """Export the model of this step; a full disk causes a warning, not a failure."""
        self._read_losses()
        # Saving and exporting use the same process group, so they must not overlap.
        with self.reporter.doing("saving"):
            self._report_save(self.checkpointer.wait())
        try:
            with self.reporter.doing("exporting"):
                model = self.exporter.export(self.step, self.metrics)
        except (DiskFullError, CheckpointError) as error:
            self.reporter.console.warn(f"{error}; training continues")
            return
        if model:
            self.reporter.update(model=model, best_model=self.exporter.best())
            self.reporter.console.info(f"model of step {model.step} exported")

    def _wait_for_copy(self) -> None:
        """Wait until a save that has just started has copied what the optimizer will change."""
        if self._blocked is None:
            return
        began = time.perf_counter()
        with self.reporter.doing("copying"):
            self.checkpointer.wait_copied()
        self._blocked += time.perf_counter() - began
        self.reporter.checkpoint_blocked(self._blocked)
        self._blocked = None

    def _report_save(self, saved: Saved | None) -> None:
        """Report the result of a save (rank 0)."""
        if saved is None or not self.group.is_main:
            return
        if saved.ref is None:
            self.reporter.console.warn(f"checkpoint not saved: {saved.error}; training continues")
            return
        self._saved = saved.step
        self.reporter.checkpoint_saved(saved.ref, saved.seconds)

    def _save_and_stop(self, stop: Stop) -> NoReturn:
        """Save this step, unless it has just been saved, and stop on every rank."""
        self.reporter.update(phase="saving")
        if self._saving != self.step:
            self._save()
        self._wait_for_copy()
        self._report_save(self.checkpointer.wait())
        # No rank exits before rank 0 has published.
        saved = self.group.broadcast(self._saved == self.step)
        outcome = "which is saved" if saved else "which could not be saved"
        raise stop.error(f"after step {self.step} of {self.config.max_steps}, {outcome}")

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint; a disk without room for it may still take the model.

        Raises NonFiniteLossError, on every rank, if there is nothing to export either.
        """
        self.reporter.update(phase="saving")
        self.reporter.draw(last=True)
        self._wait_for_copy()
        saved = self.checkpointer.wait()
        failed = None
        if self.group.is_main and saved is not None and saved.error:
            failed = saved.failure(f"the last checkpoint could not be saved: {saved.error}")
            if not isinstance(failed, NonFiniteLossError):
                failed.args = (f"{failed}{what_to_do(saved.failure, saved.size)}",)
        else:
            self._report_save(saved)
        self.unsaved = self.group.broadcast(failed)
        if isinstance(self.unsaved, NonFiniteLossError):
            raise self.unsaved


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _format_metrics(results: dict[str, float]) -> str:
    text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in results.items())
    return text.replace("eval loss", "held-out loss")
