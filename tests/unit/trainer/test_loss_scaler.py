"""The fp16 loss scale: halved and skipped on overflow, doubled after many steps without one.

And TF32, in which GPUs compute the products of fp32 runs.
"""

import pytest
import torch

from trainyard_trainer.distributed.parallel import LossScaler, allow_tf32


def test_overflow_skips_the_step_and_halves_the_scale() -> None:
    scaler = LossScaler(enabled=True)
    start = scaler.scale
    assert not scaler.update(torch.tensor(float("inf")))
    assert not scaler.update(torch.tensor(float("nan")))
    assert scaler.scale == start / 4
    assert scaler.update(torch.tensor(1.0))
    assert scaler.scale == start / 4


def test_a_loss_that_overflows_at_every_scale_is_not_finite() -> None:
    scaler = LossScaler(enabled=True)
    for _ in range(26):
        scaler.update(torch.tensor(float("nan")))
    assert not scaler.exhausted
    scaler.update(torch.tensor(float("nan")))
    assert scaler.exhausted


def test_steps_without_overflow_double_it_and_their_count_survives_a_restart() -> None:
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


def test_fp32_is_tf32_on_gpus_unless_the_run_is_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    allow_tf32(cpu, "fp32")
    allow_tf32(gpu, "bf16")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    allow_tf32(gpu, "fp32")
    assert asked == []
    monkeypatch.undo()
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    allow_tf32(gpu, "fp32")
    assert asked == ["high"]
