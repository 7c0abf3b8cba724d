"""A checkpoint of a GPU continues on CPUs, and the other way round.

Not on a GPU: torch.cuda is replaced where saving and resuming call it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.trainer.no_gpu import CPU, GPU, Gpu, files_on
from tests.support.trainer.no_gpu import gpu as gpu
from trainyard_api.job import TrainerJob
from trainyard_trainer.checkpoint import state
from trainyard_trainer.checkpoint.random_state import random_state
from trainyard_trainer.reporting.history import History
from trainyard_trainer.worker import work

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("was", "now"), [(CPU, GPU), (GPU, CPU), (GPU, GPU), (CPU, CPU)])
def test_the_state_of_one_kind_of_device_continues_on_another(
    was: torch.device, now: torch.device, sharded: bool, gpu: Gpu, tmp_path: Path
) -> None:
    saved, resumed = files_on(was, sharded), files_on(now, sharded)
    torch.manual_seed(3)
    random = torch.get_rng_state(), gpu.random.clone()
    saved.stage()(tmp_path)
    torch.manual_seed(4)
    gpu.random += 1
    states = resumed.read(tmp_path, optimizer=True, random=True)
    assert resumed.set_random(states) == (was == now)
    assert torch.equal(torch.get_rng_state(), random[0]) == (was == now)
    assert torch.equal(gpu.random, random[1]) == (was == now == GPU)
    theirs, ours = (state.state_of(each.module, each.optimizer) for each in (saved, resumed))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_run_says_that_it_continues_on_another_kind_of_device(
    make_job: Callable[..., TrainerJob],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(History, "draw", lambda *_, **__: None)  # it takes seconds to import
    shorter = {"eval_steps": 0, "sample_tokens": 1, "hang_timeout_seconds": 0}
    with monkeypatch.context() as saving:
        saving.setattr(
            state, "random_state", lambda _: random_state(CPU) | {"cuda": torch.zeros(16).byte()}
        )
        work(make_job(max_steps=4, **shorter), None, 0)
    capsys.readouterr()
    work(make_job({"attempt": 2}, max_steps=5, **shorter), None, 0)
    assert (
        "resuming from step 4 (step-00000004; saved on a GPU: the random states are new, and the"
        " rest is not bitwise the same)"
    ) in capsys.readouterr().out
