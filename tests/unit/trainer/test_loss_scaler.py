"""The fp16 loss scale: halved and skipped on overflow, doubled after a calm stretch."""

import torch

from trainyard_trainer.distributed.parallel import LossScaler


def test_overflow_skips_the_step_and_halves_the_scale() -> None:
    scaler = LossScaler(enabled=True)
    start = scaler.scale
    assert not scaler.update(torch.tensor(float("inf")))
    assert not scaler.update(torch.tensor(float("nan")))
    assert scaler.scale == start / 4
    assert scaler.update(torch.tensor(1.0))
    assert scaler.scale == start / 4


def test_what_overflows_at_every_scale_is_no_number() -> None:
    scaler = LossScaler(enabled=True)
    for _ in range(26):
        scaler.update(torch.tensor(float("nan")))
    assert not scaler.exhausted
    scaler.update(torch.tensor(float("nan")))
    assert scaler.exhausted


def test_a_calm_stretch_doubles_it_and_its_count_survives_a_restart() -> None:
    scaler = LossScaler(enabled=True)
    start = scaler.scale
    for _ in range(LossScaler.GROWTH_STEPS - 1):
        scaler.update(torch.tensor(1.0))
    resumed = LossScaler(enabled=True)
    resumed.load_state_dict(scaler.state_dict())
    assert resumed.update(torch.tensor(1.0))
    assert resumed.scale == 2 * start


def test_without_fp16_the_norm_is_not_checked() -> None:
    scaler = LossScaler(enabled=False)
    assert scaler.update(torch.tensor(float("inf")))
    assert scaler.scale == 1
