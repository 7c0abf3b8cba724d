"""trainyard.Checkpointer in a script of one's own: it resumes bitwise, and says what it can't."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sdk.scripts import TRAIN, agent_server, run_ranks, variables
from tests.support.trainer.checkpoint_tensors import digests
from tests.support.trainer.ranks import RankServer
from trainyard_agent.server import ReportServer
from trainyard_api.checkpoint import CHECKPOINTS, step_name
from trainyard_storage.checkpoints import digest, newest_valid

STEPS = 12
PROGRAM = """
import numpy, torch, trainyard
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
run = trainyard.init()
class Thing:
    value = None
    def state_dict(self):
        return {"value": self.value}
    def load_state_dict(self, state):
        self.value = state["value"]
thing = Thing()
def make(**more):
    return trainyard.Checkpointer(run, model=model, optimizer=optimizer, **more)
"""


class Scripts:
    """Runs scripts below `folder`."""

    def __init__(self, server: RankServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def train(
        self,
        name: str,
        *options: str,
        ranks: int = 1,
        attempt: int = 1,
        env: dict[str, str] | None = None,
    ) -> tuple[list[int], str, str]:
        """One attempt of train.py, whose run's directory has this name."""
        run_dir = self.folder / name
        run_dir.mkdir(exist_ok=True)
        run = {"TRAINYARD_RUN": "mine", "TRAINYARD_ATTEMPT": str(attempt)}
        run |= (env or {}) | {"TRAINYARD_RUN_DIR": str(run_dir)}
        return run_ranks(self.server, TRAIN, [f"--steps={STEPS}", *options], run, ranks)

    def program(self, text: str, **more: str) -> tuple[int, str, str]:
        """PROGRAM and `text`."""
        script = self.folder / "script.py"
        script.write_text(PROGRAM + text)
        run = {"TRAINYARD_RUN": "mine", "TRAINYARD_RUN_DIR": str(self.folder), **more}
        (code,), out, errors = run_ranks(self.server, script, [], run)
        return code, out, errors


@pytest.fixture
def scripts(rank_server: RankServer, tmp_path: Path) -> Scripts:
    return Scripts(rank_server, tmp_path)


@pytest.fixture
def server() -> Iterator[ReportServer]:
    yield from agent_server()


def state(run_dir: Path, step: int = STEPS) -> dict[str, Any]:
    """Everything that a checkpoint has, byte for byte."""
    directory = run_dir / CHECKPOINTS / step_name(step)
    pickled = directory / "script.pt"
    return {
        **digests(run_dir, step),
        "script": json.loads((directory / "script.json").read_text()),
        "pickled": pickled.read_bytes() if pickled.exists() else b"",
    }


@pytest.mark.parametrize(
    ("model", "loader", "ranks"),
    [
        ("plain", "stateful", 1),
        ("plain", "worker", 1),
        ("ddp", "steps", 3),
        ("ddp", "stateful", 2),
        ("fsdp", "steps", 3),
    ],
)
def test_a_killed_script_resumes_bitwise(
    scripts: Scripts, tmp_path: Path, model: str, loader: str, ranks: int
) -> None:
    options = (f"--model={model}", f"--loader={loader}")
    codes, _, errors = scripts.train("calm", *options, ranks=ranks)
    assert codes == [0] * ranks, errors
    codes, _, errors = scripts.train("killed", *options, "--kill=7", ranks=ranks)
    assert codes == [-signal.SIGKILL] * ranks, errors
    codes, out, errors = scripts.train("killed", *options, ranks=ranks, attempt=2)
    assert codes == [0] * ranks, errors
    assert out.startswith(("trainyard: resuming from step 6", "trainyard: resuming from step 7"))
    whole, resumed = state(tmp_path / "calm"), state(tmp_path / "killed")
    assert {name for name in whole if whole[name] != resumed.get(name)} == set()
    assert any(name.startswith("others.average.weights") for name in whole)
    assert "rng.0.cpu" in whole


@pytest.mark.parametrize("model", ["ddp", "fsdp"])
def test_another_number_of_ranks_continues(scripts: Scripts, model: str) -> None:
    assert scripts.train("run", f"--model={model}", "--steps=4", ranks=2)[0] == [0, 0]
    codes, out, errors = scripts.train("run", "--model=plain", attempt=2)
    assert (codes, out) == ([0], "trainyard: resuming from step 4\n"), errors
    codes, out, errors = scripts.train("run", f"--model={model}", "--steps=14", ranks=2, attempt=3)
    assert (codes, out) == ([0, 0], f"trainyard: resuming from step {STEPS}\n"), errors


def test_loader_states_of_ranks_fit_no_other_number_of_them(scripts: Scripts) -> None:
    options = ("--model=ddp", "--loader=stateful")
    assert scripts.train("run", *options, "--steps=2", ranks=2)[0] == [0, 0]
    codes, _, errors = scripts.train("run", "--loader=stateful", attempt=2)
    assert codes == [1]
    assert errors.splitlines()[-1].endswith(
        "data: the checkpoint has the loader states of 2 ranks, which 1 can't continue: use 2"
        " again, or a trainyard.StepSampler, whose batches don't depend on the number of ranks"
    )


def test_the_report_has_the_checkpoint_and_where_it_resumed(
    scripts: Scripts, server: ReportServer, tmp_path: Path
) -> None:
    environment = variables(server, tmp_path)
    assert scripts.train("run", "--steps=3", env=environment)[0] == [0]
    newest = digest(tmp_path / "run" / CHECKPOINTS / step_name(3))
    document = server.report.document()
    assert document
    assert document["lastCheckpoint"].pop("time")
    assert document["lastCheckpoint"] == {"step": 3, "digest": newest}
    assert "resumedFromStep" not in document
    assert scripts.train("run", "--steps=4", env=environment)[0] == [0]
    document = server.report.document()
    assert document
    assert (document["resumedFromStep"], document["lastCheckpoint"]["step"]) == (3, 4)


def test_a_damaged_checkpoint_is_skipped_and_none_left_is_an_error(
    scripts: Scripts, tmp_path: Path
) -> None:
    assert scripts.train("run", "--steps=3")[0] == [0]
    checkpoints = tmp_path / "run" / CHECKPOINTS
    damaged = checkpoints / step_name(3) / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    codes, out, errors = scripts.train("run", "--steps=2", attempt=2)
    assert (codes, out) == ([0], "trainyard: resuming from step 2\n")
    assert "warning: trainyard: checkpoint skipped: " in errors
    for step in (1, 2):
        (checkpoints / step_name(step) / "state.safetensors").unlink()
    codes, _, errors = scripts.train("run", attempt=3)
    assert codes == [1]
    assert "none of the 3 checkpoints in" in errors.splitlines()[-1]


def test_values_of_every_kind_come_back(scripts: Scripts, tmp_path: Path) -> None:
    text = """
from collections import Counter
thing.value = [1, 2.5, None, (True, "x"), {3: b"y"}, Counter({5: 2}), numpy.arange(4.0),
    numpy.float32(1.5), torch.tensor([1.5]), torch.bfloat16, float("inf")]
before = repr(thing.value)
optimizer.param_groups[0]["lr"] = 0.25
with make(thing=thing) as state:
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state.save(5, metrics={"eval_loss": torch.tensor(0.5), "bad": float("nan")})
    thing.value = None
    optimizer.param_groups[0]["lr"] = 1
again = make(thing=thing)
assert again.resume() == 5
assert repr(thing.value) == before, (repr(thing.value), before)
assert optimizer.param_groups[0]["lr"] == 0.25
"""
    code, _, errors = scripts.program(text)
    assert code == 0, errors
    _, manifest, _ = newest_valid(tmp_path / CHECKPOINTS)
    assert manifest
    assert (manifest.step, manifest.metrics, manifest.kind) == (5, {"eval_loss": 0.5}, "checkpoint")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "thing.value = lambda: 1\nmake(thing=thing).save(1)",
            "thing: its state_dict() has a value that only code could restore",
        ),
        ("make(thing=3)", "thing: it has no state_dict() and load_state_dict()"),
        (
            "make(data=torch.utils.data.DataLoader([1, 2]))",
            "data: a DataLoader has no state_dict(): use torchdata's StatefulDataLoader",
        ),
        (
            "model = torch.nn.Linear(3, 3)\nmake()",
            "optimizer: a parameter of shape (2, 2) is not the model's",
        ),
        (
            "with make() as state: state.save(1)\nmake(thing=thing).resume()",
            "step-00000001 has no state of thing: leave it out",
        ),
        (
            "with make(thing=thing) as state: state.save(1)\nmake().resume()",
            "step-00000001 has the state of thing: pass it to trainyard.Checkpointer",
        ),
        (
            "with make(data=trainyard.StepSampler(8, 4)) as state: state.save(1)\n"
            "make(data=trainyard.StepSampler(8, 2)).resume()",
            "StepSampler: batch_size was 4 and is 2, so step 1 was of other batches",
        ),
        (
            "import trainyard_trainer.checkpoint.objects as o\no.FORMAT = 2\n"
            "with make() as state: state.save(1)\no.FORMAT = 1\nmake().resume()",
            "format 2, but this version of trainyard reads up to 1",
        ),
        (
            "with make() as state: state.save(1)\n"
            "model = torch.nn.Linear(4, 2)\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmake().resume()",
            "model.weight has the shape (2, 2), in this model (2, 4)",
        ),
        (
            "with make() as state: state.save(1)\n"
            "model = torch.nn.Linear(2, 2, bias=False)\n"
            "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nmake().resume()",
            "it has model.bias, which this model does not have",
        ),
        (
            "with make() as state: state.save(1)\n"
            "optimizer = torch.optim.AdamW(model.parameters())\nmake().resume()",
            "was saved with SGD: use that again, or start the run under another name",
        ),
        (
            "model.weight.data.fill_(float('nan'))\nwith make() as state: state.save(1)",
            "step-00000001: the weights are not finite",
        ),
    ],
)
def test_what_a_user_can_change_is_one_line(scripts: Scripts, text: str, line: str) -> None:
    code, _, errors = scripts.program(text)
    assert code == 1
    assert line in errors.splitlines()[-1]


def test_a_new_run_on_the_data_of_an_older_one_may_write(scripts: Scripts) -> None:
    save = "with make() as state: state.save(1)"
    assert scripts.program(save, TRAINYARD_ATTEMPT="3", TRAINYARD_RUN_UID="a")[0] == 0
    assert scripts.program(save, TRAINYARD_ATTEMPT="1", TRAINYARD_RUN_UID="b")[0] == 0
    code, _, errors = scripts.program(save, TRAINYARD_ATTEMPT="2", TRAINYARD_RUN_UID="a")
    assert code == 0, errors


def test_the_next_step_does_not_change_what_is_saved(scripts: Scripts) -> None:
    text = """
weight = model.weight.detach().clone()
with make(thing=thing) as state:
    thing.value = {"list": [1]}
    state.save(1)
    model.weight.data.zero_()
    thing.value["list"].append(2)
again = make(thing=thing)
again.resume()
assert torch.equal(model.weight, weight)
assert thing.value == {"list": [1]}
"""
    code, _, errors = scripts.program(text)
    assert code == 0, errors


def test_a_checkpoint_of_a_gpu_continues_on_cpus(scripts: Scripts) -> None:
    """Its random states fit no CPU; how the optimizer computes, and an enabled scaler, are ours."""
    text = """
import trainyard_trainer.checkpoint.state as files
plain = files.random_state
files.random_state = lambda device: plain(device) | {"cuda": torch.zeros(16).byte()}
optimizer.param_groups[0].update(foreach=True, lr=0.25)
with make(scaler=torch.amp.GradScaler("cpu", enabled=False)) as state:
    state.save(1)
files.random_state = plain
optimizer.param_groups[0].update(foreach=False, lr=1)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
torch.manual_seed(5)
before = torch.get_rng_state()
assert make(scaler=scaler).resume() == 1
assert scaler.get_scale() == 8
assert (optimizer.param_groups[0]["foreach"], optimizer.param_groups[0]["lr"]) == (False, 0.25)
assert not torch.equal(torch.get_rng_state(), before)
"""
    code, out, errors = scripts.program(text)
    assert code == 0, errors
    assert out.splitlines() == [
        "trainyard: scaler was disabled when saved: it starts anew",
        "trainyard: saved on another kind of device: new random states",
        "trainyard: resuming from step 1",
    ]


THREADS = """
import atexit, pathlib, sys

def count():
    tasks = pathlib.Path("/proc/self/task").glob("*/comm")
    print("threads", sum("gloo_runloop" in task.read_text() for task in tasks), flush=True)

atexit.register(count)  # the last one to run
import torch, torch.distributed as dist, trainyard
run = trainyard.init()
dist.init_process_group("gloo")
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
how = sys.argv[1]
state = trainyard.Checkpointer(run, model=model, optimizer=optimizer)
if how == "error":
    with state:
        state.resume()
        raise ValueError("my own mistake")
state.resume()
assert not run.should_stop()
state.save(1)
if how == "closed":
    state.close()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("how", "left"), [("closed", 0), ("left open", 2), ("error", 2)])
def test_no_thread_of_ours_holds_tensors_while_python_finalizes(
    scripts: Scripts, how: str, left: int
) -> None:
    """Such a thread aborts the process; two are of the script's own group, if it is not left."""
    script = scripts.folder / "threads.py"
    script.write_text(THREADS)
    run = {"TRAINYARD_RUN": "mine", "TRAINYARD_RUN_DIR": str(scripts.folder)}
    codes, out, errors = run_ranks(scripts.server, script, [how], run, ranks=2)
    assert codes == ([1, 1] if how == "error" else [0, 0]), errors
    assert out.splitlines()[-1] == f"threads {left}"
