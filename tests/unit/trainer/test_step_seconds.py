"""Step statistics exclude the configured warm-up."""

import pytest

from trainyard_trainer.reporting.timing import Throughput


def test_step_seconds_exclude_the_warm_up() -> None:
    throughput = Throughput(batch_size=8, tokens_per_sample=0, warmup_steps=3)
    for seconds in (9.0, 9.0, 9.0):
        throughput.add(seconds)
    assert throughput.step_seconds() is None
    for seconds in (1.0, 2.0, 3.0):
        throughput.add(seconds)
    measured = throughput.step_seconds()
    assert measured is not None
    assert (measured.mean, measured.p50) == (2.0, 2.0)
    assert measured.p99 == pytest.approx(2.98)
    assert throughput.rates()[0] == pytest.approx(6 * 8 / 33)  # the line of progress shows all
