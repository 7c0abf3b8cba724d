"""A DDP loop as the guide writes it: a Checkpointer, and a model that is published at the end.

    checkpointed.py STEPS EVERY [FILE]

Rank 1 waits in the middle while FILE exists, so that a test can kill it there.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import trainyard

total, every = int(sys.argv[1]), int(sys.argv[2])
hold = Path(sys.argv[3]) if len(sys.argv) > 3 else None

run = trainyard.init()
dist.init_process_group("gloo")
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
inputs = torch.randn(1000, 16)
dataset = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
layers = (nn.Linear(16, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 1))
model = DistributedDataParallel(nn.Sequential(*layers))
torch.manual_seed(run.rank)  # each rank drops other units
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
loader = DataLoader(dataset, batch_sampler=trainyard.StepSampler(len(dataset), batch_size=16))
with trainyard.Checkpointer(
    run, model=model, optimizer=optimizer, scheduler=scheduler, data=loader
) as state:
    start = state.resume()
    for step, (x, y) in zip(range(start + 1, total + 1), loader, strict=False):
        while hold and hold.exists() and run.rank == 1 and step > total // 2:
            time.sleep(0.05)
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        run.report(step=step, total=total, loss=loss, samples=step * 16)
        if run.should_stop():
            state.save(step)
            break
        if step % every == 0 or step == total:
            state.save(step, metrics={"loss": loss})
if step == total:
    folder = run.directory / "out"
    if run.rank == 0:
        folder.mkdir(exist_ok=True)
        save_file(model.module.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architectures": ["Regression"]}))
    run.publish(folder)
dist.destroy_process_group()
