"""Trains small models with torch.compile and without; prints what was compiled, and the losses.

    torchrun compiled_runs.py

The output is JSON: [report of the compiler, losses of each step, those in eager mode] for each
strategy, all with activation checkpointing; and reports of other models.
"""

import json
import os
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from trainyard_api.spec import Strategy
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed import compiler
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.models.resnet import ResNet, ResNetShape

STEPS = 2
STRATEGIES: list[Strategy] = ["ddp", "fsdp"]


def parallel(group: Group, strategy: Strategy, compiled: bool) -> Parallel:
    """A model with blocks of two kinds."""
    torch.manual_seed(1)
    model = ResNet(ResNetShape(3, 16, (16, 32), (1, 1), False))
    config = TrainConfig(activation_checkpointing=True, compile=compiled)
    return Parallel(model, model.blocks, group, strategy, "fp32", config)


def losses(trained: Parallel) -> list[float]:
    """The mean loss of every step."""
    optimizer = torch.optim.SGD(trained.module.parameters(), lr=0.1)
    found = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + trained.group.rank)
        pixels, labels = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
        loss = torch.nn.functional.cross_entropy(trained.model(pixels), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(trained.group.mean(loss.detach())))
    return found


class Layer(nn.Linear):
    """A layer that does something that torch.compile can't follow between its two operations."""

    def __init__(self, between: Callable[[], Any] = lambda: None) -> None:
        super().__init__(2, 2)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        self.between()
        return super().forward(x)


_sin: Any = cast(Any, torch._dynamo.disable)(torch.sin)


class Eager(nn.Module):
    """A layer that torch.compile leaves as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _sin(x))


def report(*layers: nn.Module) -> str:
    """What is said about them, with a loss that is not called."""
    made = compiler.Compiler(torch.device("cpu"))
    made.compile_blocks(layers)
    made.compile("the loss", nn.Identity(), "forward")
    nn.Sequential(*layers)(torch.ones(1, 2))
    try:
        return made.report()
    except ConfigError as error:
        return str(error)


def main() -> None:
    torch.set_num_threads(1)
    compiler.BACKEND = "aot_eager"  # all of torch.compile but the kernels, which take long to make
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), int(os.environ["WORLD_SIZE"]), torch.device("cpu"), None)
    found = []
    for strategy in STRATEGIES:
        eager = losses(parallel(group, strategy, compiled=False))
        compiled = parallel(group, strategy, compiled=True)
        trained = losses(compiled)
        assert compiled.compiler
        found.append([compiled.compiler.report(), trained, eager])
    if group.is_main:
        reports = [
            report(Layer(), Layer(torch._dynamo.graph_break), Eager()),
            report(Eager()),
            report(*(nn.Linear(width, width + 1) for width in range(2, 12))),
        ]
        print(json.dumps([found, reports]), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
