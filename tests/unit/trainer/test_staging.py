"""A save copies the state during the next step, and still has the state of its own step.

Copies from a GPU are not made from one: torch.cuda is replaced where they call it.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.trainer.no_gpu import GPU, Gpu, files_on
from tests.support.trainer.no_gpu import gpu as gpu
from trainyard_api.job import TrainerJob
from trainyard_api.spec import CheckpointPolicy
from trainyard_trainer.checkpoint.checkpointer import Checkpointer
from trainyard_trainer.checkpoint.publish import Origin
from trainyard_trainer.checkpoint.staging import Staging
from trainyard_trainer.checkpoint.state import STATE_TENSORS, FullState
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.optim import build_optimizer
from trainyard_trainer.reporting.history import History
from trainyard_trainer.worker import work

ALONE = Group(0, 1, torch.device("cpu"), None)


def test_the_optimizer_waits_for_the_copy(
    make_job: Callable[..., TrainerJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(History, "draw", lambda *_, **__: None)

    def checkpoint(name: str) -> dict[str, torch.Tensor]:
        run_dir = tmp_path / name
        work(make_job({"run_dir": str(run_dir)}, max_steps=5, eval_steps=0), None, 0)
        return load_file(run_dir / "checkpoints/step-00000004" / STATE_TENSORS)

    plain = checkpoint("plain")
    copy = Staging.copy

    def slow_copy(self: Staging, *args: object) -> dict[str, torch.Tensor]:
        time.sleep(0.3)  # much longer than a step takes
        return copy(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Staging, "copy", slow_copy)
    slow = checkpoint("slow")
    assert slow.keys() == plain.keys()
    assert all(torch.equal(slow[name], tensor) for name, tensor in plain.items())


def test_a_forward_pass_may_change_buffers_at_once(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    config = TrainConfig()
    parallel = Parallel(module, [], ALONE, "ddp", "fp32", config)
    files = FullState(parallel.module, build_optimizer(module, config), parallel.group)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    write = files.stage()
    assert not files.copied.is_set()
    module(torch.randn(8, 3))  # batch norm's running statistics move
    write(tmp_path)
    assert files.copied.is_set()

    saved = load_file(tmp_path / STATE_TENSORS)
    assert all(torch.equal(saved[f"model.{name}"], tensor) for name, tensor in before.items())
    assert not torch.equal(module.state_dict()["1.running_mean"], before["1.running_mean"])


def test_a_gpu_is_copied_from_at_once_into_pinned_buffers(gpu: Gpu) -> None:
    staging, tensors = Staging(GPU), {"a": torch.ones(3), "b": torch.zeros(2)}
    ready = staging.mark()
    first = staging.copy(tensors, ready)
    copied = ["copies begin", "copy", "copy", "copies end", "synchronize"]
    begins = ["mark", "pinned", "pinned", "new stream", "wait for the mark"]
    assert gpu.calls == [*begins, *copied]
    gpu.calls.clear()
    tensors["a"] += 1
    second = staging.copy(tensors, staging.mark())
    assert gpu.calls == ["mark", "wait for the mark", *copied]
    assert second["a"] is first["a"]
    assert second["a"].tolist() == [2, 2, 2]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("sharded", [False, True])
def test_the_thread_that_saves_has_this_ranks_gpu(sharded: bool, gpu: Gpu, tmp_path: Path) -> None:
    files = files_on(GPU, sharded)
    origin, keep = Origin("run", 1, 1), CheckpointPolicy()
    checkpointer = Checkpointer(tmp_path, origin, files, None, keep, lambda _: lambda _: None, None)
    checkpointer.save(1, None, {})
    saved = checkpointer.wait()
    checkpointer.close()
    assert saved
    assert not saved.error
    assert [call for call in gpu.calls if isinstance(call, tuple)] == [("checkpoint_0", GPU)]
    assert gpu.calls.index(("checkpoint_0", GPU)) < gpu.calls.index("pinned")
