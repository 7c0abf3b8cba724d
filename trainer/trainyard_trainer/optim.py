"""The optimizer and its learning-rate schedule, a pure function of the step."""

import math

import torch
from torch import nn

from trainyard_trainer.config import TrainConfig


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config`; no weight decay for biases, norms and other vectors."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        # torch has no fused SGD for sharded parameters.
        sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters)
        return torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            fused=not sharded,
        )
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the step after `step` steps: linear warm-up, the schedule, then constant."""
    assert config.min_learning_rate is not None
    assert config.lr_decay_steps is not None
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    span = max(1, config.lr_decay_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    decay = 1 - progress
    if config.lr_scheduler_type == "cosine":
        decay = (1 + math.cos(math.pi * progress)) / 2
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
