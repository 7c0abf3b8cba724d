"""A training script of somebody's own, which saves and resumes with trainyard.Checkpointer.

    torchrun train.py --model plain|ddp|fsdp --steps 30 [--loader stateful] [--kill STEP]

It draws random numbers in every way that training may: dropout, Python's and NumPy's generators,
and a shuffled loader.
"""

import argparse
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import trainyard

SAMPLES, BATCH = 108, 12  # for one to four ranks


class Average:
    """A moving average of the weights, which FSDP has sharded as they are."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: p.detach().clone() for name, p in named(model)}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in named(model):
            self.weights[name].lerp_(parameter, 0.1)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.updates = dict(state["weights"]), state["updates"]


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters by names that are the same with and without DDP."""
    return [(name.removeprefix("module."), each) for name, each in model.named_parameters()]


def make_model(kind: str) -> nn.Module:
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 4)]
    model: nn.Module = nn.Sequential(*layers)
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(layers[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def make_loader(kind: str, data: TensorDataset, ranks: int) -> Any:
    if kind == "stateful":
        from torchdata.stateful_dataloader import (  # type: ignore[import-untyped]
            StatefulDataLoader,
        )

        return StatefulDataLoader(data, batch_size=BATCH // ranks, shuffle=True, num_workers=1)
    return DataLoader(
        data, batch_sampler=trainyard.StepSampler(len(data), BATCH), num_workers=kind == "worker"
    )


def batches(loader: Any, start: int, steps: int) -> Iterator[tuple[int, Any]]:
    """The number of each step from `start` + 1 on, and its batch."""
    step = start
    while step < steps:
        for batch in loader:
            step += 1
            yield step, batch
            if step == steps:
                return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["plain", "ddp", "fsdp"], default="plain")
    parser.add_argument("--loader", choices=["steps", "worker", "stateful"], default="steps")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--kill", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    run = trainyard.init()
    if run.world_size > 1:
        dist.init_process_group("gloo")
    data = TensorDataset(torch.randn(SAMPLES, 8), torch.randint(4, (SAMPLES,)))
    model = make_model(options.model)
    random.seed(run.rank)
    np.random.seed(run.rank)
    torch.manual_seed(100 + run.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 15], gamma=0.5)
    average = Average(model)
    loader = make_loader(options.loader, data, run.world_size)
    with trainyard.Checkpointer(
        run,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        data=loader,
        average=average,
        keep_last=100,
    ) as state:
        start = state.resume()
        for step, (inputs, labels) in batches(loader, start, options.steps):
            inputs = inputs + 0.01 * random.random() + 0.01 * np.random.rand()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            average.update(model)
            run.report(step=step, total=options.steps, loss=loss)
            if run.should_stop():
                state.save(step)
                break
            if step % options.every == 0 or step == options.steps:
                state.save(step, metrics={"loss": loss})
            if step == options.kill:
                os.kill(os.getpid(), signal.SIGKILL)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
