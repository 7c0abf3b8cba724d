"""The training loop."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainyard_api.job import TrainerJob
from trainyard_trainer.checkpoint import Checkpointer, Saved
from trainyard_trainer.clock import since_start
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.console import Console
from trainyard_trainer.data import Batch, Ids, Samples, global_batch, rank_share
from trainyard_trainer.errors import CheckpointError, NonFiniteLossError
from trainyard_trainer.group import Group
from trainyard_trainer.history import History
from trainyard_trainer.optim import learning_rate, set_learning_rate
from trainyard_trainer.parallel import Parallel
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.report import Reporter


@dataclass
class Listeners:
    """Who hears of the training on this rank; the reporter and history are rank 0's."""

    console: Console
    reporter: Reporter | None
    history: History | None

    def report(self, **values: Any) -> None:
        """Set fields of the progress report."""
        if self.reporter:
            self.reporter.update(**values)

    def record(self, **record: Any) -> None:
        """Add a line to the history."""
        if self.history:
            self.history.add(**record)


class Loop:
    """Trains `recipe` from step `start` to the last; every rank runs the same calls in order."""

    def __init__(
        self,
        job: TrainerJob,
        config: TrainConfig,
        recipe: Recipe,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        checkpointer: Checkpointer,
        listeners: Listeners,
        start: int,
    ) -> None:
        self.job = job
        self.config = config
        self.recipe = recipe
        self.parallel = parallel
        self.group: Group = parallel.group
        self.optimizer = optimizer
        self.checkpointer = checkpointer
        self.out = listeners
        self.start = start
        self.step = start  # optimizer steps done: also the position in the data
        self.metrics: dict[str, float] = {}  # of the newest step that was logged or evaluated
        self._losses = torch.zeros(config.log_steps, device=self.group.device)
        self._unread = 0  # losses still on the device
        self._window: list[float] = []  # losses read since the last line of progress
        self._window_seconds = 0.0  # spent in those steps
        self._data_seconds = 0.0

    def run(self) -> None:
        """Train to max_steps, evaluating, logging and saving on the way."""
        config, last = self.config, self.config.max_steps
        began = time.perf_counter()
        self.out.report(phase="training", step=self.step, total_steps=last)
        while self.step < last:
            norm = self._train_step()
            if self.step == self.start + 1:
                self.out.console.say(f"first step done after {since_start():.1f} s")
                self.checkpointer.preload()
            done = self.step == last
            if self.step % config.log_steps == 0 or done:
                rate = (time.perf_counter() - began) / (self.step - self.start)
                self._log(norm, eta=rate * (last - self.step))
            if done or _due(self.step, config.eval_steps):
                self._evaluate()
            if done or _due(self.step, config.sample_steps):
                self._sample()
            if done or self.step % self.job.checkpoint.every_steps == 0:
                self._save()
            self._hear(self.checkpointer.poll())
        self._finish_saving()

    def _train_step(self) -> torch.Tensor:
        """One optimizer step; the gradient norm, still on the device."""
        config, parallel = self.config, self.parallel
        began = time.perf_counter()
        rate = learning_rate(config, self.step)
        set_learning_rate(self.optimizer, rate)
        accumulation = config.gradient_accumulation_steps
        ids = global_batch(self.job.seed, self.step, config.batch_size, len(self.recipe.train))
        for micro in range(accumulation):
            batch = self._fetch(self.recipe.train, ids, micro)
            with parallel.accumulate(last=micro == accumulation - 1):
                with parallel.autocast():
                    loss = self.recipe.loss(parallel.model, batch)
                torch.autograd.backward(loss * (parallel.scaler.scale / accumulation))
            self._losses[self._unread] += loss.detach() / accumulation
        norm = parallel.clip_gradients(config.max_grad_norm)
        if parallel.scaler.finite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._unread += 1
        seconds = time.perf_counter() - began
        self._window_seconds += seconds
        if self.out.reporter:
            self.out.reporter.update(step=self.step)
            self.out.reporter.metrics.step_seconds.observe(seconds)
        return norm

    def _fetch(self, samples: Samples, ids: Ids, micro: int) -> Batch:
        """This rank's part of a global batch, on its device."""
        began = time.perf_counter()
        group = self.group
        accumulation = self.config.gradient_accumulation_steps
        share = rank_share(ids, group.rank, group.world_size, micro, accumulation)
        batch = samples.fetch(share)
        if group.device.type != "cpu":
            batch = {k: v.to(group.device, non_blocking=True) for k, v in batch.items()}
        self._data_seconds += time.perf_counter() - began
        return batch

    def _read_losses(self) -> None:
        """Read the losses since the last time, averaged over the ranks.

        Raises NonFiniteLossError on every rank alike: each has the average.
        """
        if self._unread == 0:
            return
        losses = self.group.mean(self._losses[: self._unread].clone()).tolist()
        first = self.step - self._unread + 1
        self._losses.zero_()
        self._unread = 0
        self._window.extend(losses)
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                self._hear(self.checkpointer.wait())
                raise NonFiniteLossError(
                    f"the loss of step {step} is {loss}; lower config.learning_rate"
                    f" ({self.config.learning_rate:g}) or lengthen warmup_steps. Checkpoints of"
                    " earlier steps are kept"
                )

    def _log(self, norm: torch.Tensor, eta: float) -> None:
        """One line of progress, the report and the metrics."""
        self._read_losses()
        steps = len(self._window)
        loss = sum(self._window) / steps
        samples_per_second = steps * self.config.batch_size / self._window_seconds
        tokens = self.recipe.tokens_per_sample
        tokens_per_second = samples_per_second * tokens or None
        rate = learning_rate(self.config, self.step - 1)
        self.metrics = {"loss": loss}
        self.out.report(
            loss=loss,
            samples_per_second=samples_per_second,
            tokens_per_second=tokens_per_second,
            eta_seconds=round(eta),
        )
        self.out.record(
            step=self.step,
            loss=loss,
            learning_rate=rate,
            tokens_per_second=tokens_per_second,
            samples_per_second=samples_per_second,
            attempt=self.job.attempt,
            time=time.time(),
        )
        speed, unit = (tokens_per_second, "tokens") if tokens else (samples_per_second, "samples")
        assert speed is not None
        self.out.console.step(self.step, self.config.max_steps, loss, rate, speed, unit, eta)
        if self.out.reporter:
            metrics = self.out.reporter.metrics
            metrics.step.set(self.step)
            metrics.loss.set(loss)
            metrics.learning_rate.set(rate)
            metrics.grad_norm.set(float(norm))
            metrics.samples_per_second.set(samples_per_second)
            metrics.tokens_per_second.set(tokens_per_second or 0)
            metrics.samples.inc(steps * self.config.batch_size)
            metrics.tokens.inc(steps * self.config.batch_size * tokens)
            metrics.data_wait.inc(self._data_seconds)
            if self.group.device.type == "cuda":
                metrics.gpu_memory.set(torch.cuda.max_memory_allocated())
        self._window, self._window_seconds, self._data_seconds = [], 0.0, 0.0

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Mean loss over the same held-out samples every time."""
        self.out.report(phase="evaluating")
        parallel, samples, config = self.parallel, self.recipe.held_out, self.config
        count = config.eval_batches * config.batch_size
        ids = np.linspace(0, len(samples) - 1, count).astype(np.int64)
        total = torch.zeros((), device=self.group.device)
        data_seconds = self._data_seconds
        parallel.module.eval()
        for batch_ids in ids.reshape(config.eval_batches, -1):
            for micro in range(config.gradient_accumulation_steps):
                batch = self._fetch(samples, batch_ids, micro)
                with parallel.autocast():
                    total += self.recipe.loss(parallel.module, batch)
        parallel.module.train()
        self._data_seconds = data_seconds
        total /= config.eval_batches * config.gradient_accumulation_steps
        loss = float(self.group.mean(total))
        self.metrics["eval_loss"] = loss
        self.out.console.say(f"step {self.step}: held-out loss {loss:.4f}")
        self.out.report(phase="training", eval_loss=loss)
        self.out.record(step=self.step, eval_loss=loss, attempt=self.job.attempt)
        if self.out.reporter:
            self.out.reporter.metrics.eval_loss.set(loss)

    @torch.no_grad()
    def _sample(self) -> None:
        """Something the model makes; every rank computes it, for FSDP needs them all."""
        self.parallel.module.eval()
        text = self.recipe.sample(self.parallel.module, self.step)
        self.parallel.module.train()
        if text is not None:
            self.out.console.sample(self.step, text)
            self.out.report(sample=text)

    def _save(self) -> None:
        """Start a checkpoint of this step; training goes on while it is written."""
        self._read_losses()
        began = time.perf_counter()
        self._hear(self.checkpointer.wait())
        self.checkpointer.save(self.step, self.config.max_steps, self.metrics)
        if self.out.reporter:
            blocked = time.perf_counter() - began
            self.out.reporter.metrics.checkpoint_block.observe(blocked)

    def _hear(self, saved: Saved | None) -> None:
        """Say how a save ended (rank 0)."""
        if saved is None or not self.group.is_main:
            return
        if saved.ref is None:
            self.out.console.warn(f"checkpoint not saved: {saved.error}; training goes on")
            return
        self.out.console.say(f"checkpoint of step {saved.step} saved in {saved.seconds:.1f} s")
        self.out.report(last_checkpoint=saved.ref)
        if self.out.reporter:
            self.out.reporter.metrics.checkpoint_write.observe(saved.seconds)
            self.out.reporter.metrics.checkpoint_step.set(saved.step)
        if self.out.history:
            self.out.history.draw()

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint; unlike earlier ones it must succeed."""
        if self.out.history:
            self.out.history.draw(last=True)
        self.out.report(phase="saving")
        saved = self.checkpointer.wait()

        def check() -> None:
            if self.group.is_main and saved is not None and saved.error:
                raise CheckpointError(f"the last checkpoint could not be saved: {saved.error}")

        self.group.together(check)
        self._hear(saved)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
