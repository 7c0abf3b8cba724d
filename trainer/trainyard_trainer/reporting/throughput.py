"""Step times and rates: of the steps since the last line of progress, and of the whole attempt."""

from collections import deque

import numpy as np

from trainyard_api.status import StepSeconds

_REMEMBERED = 10_000  # steps


class Throughput:
    """Times the optimizer steps themselves: evaluation and checkpoints are not in them."""

    def __init__(self, batch_size: int, tokens_per_sample: float, warmup_steps: int = 1) -> None:
        """`warmup_steps`: this attempt's first steps warm up kernels and allocators, or compile:
        no measure of the rest, so that `step_seconds` leaves them out."""
        self.batch_size = batch_size
        self.tokens_per_sample = tokens_per_sample
        self._window = 0.0
        self._steps = 0
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._warmup_left = warmup_steps

    def add(self, seconds: float) -> None:
        """Another step is done."""
        self._window += seconds
        self._steps += 1
        if self._warmup_left > 0:
            self._warmup_left -= 1
        else:
            self._times.append(seconds)

    def rates(self) -> tuple[float, float | None]:
        """Samples and tokens per second, all ranks, since the last call."""
        samples = self._steps * self.batch_size / self._window
        self._window, self._steps = 0.0, 0
        return samples, samples * self.tokens_per_sample or None

    def step_seconds(self) -> StepSeconds | None:
        """Statistics of this attempt's steps after the warm-up."""
        if not self._times:
            return None
        times = np.fromiter(self._times, float)
        p50, p99 = np.percentile(times, (50, 99))
        return StepSeconds(mean=float(times.mean()), p50=float(p50), p99=float(p99))
