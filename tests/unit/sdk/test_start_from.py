"""startFrom in a script of one's own: another run's checkpoint, bitwise, or its model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sdk.scripts import TRAIN, agent_server, run_ranks, variables
from tests.support.serving.models import export_char_gpt
from tests.support.trainer.checkpoint_tensors import digests, load
from tests.support.trainer.ranks import RankServer
from trainyard_agent.server import ReportServer
from trainyard_api.checkpoint import CHECKPOINTS, MODELS, step_name
from trainyard_storage.checkpoints import file_sha256

PROGRAM = """
import torch, trainyard
run = trainyard.init()
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
def make(**more):
    return trainyard.Checkpointer(run, model=model, optimizer=optimizer, **more)
"""


class Branch:
    """Runs `a`, and `b`, which starts from it. `server`: what `b` reports to."""

    def __init__(self, ranks: RankServer, server: ReportServer, folder: Path) -> None:
        self.ranks = ranks
        self.server = server
        self.folder = folder

    def directory(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def env(self, name: str, **start: str) -> dict[str, str]:
        """Of a rank of this run; with `start` it starts from another."""
        run = variables(self.server, self.directory(name)) | {"TRAINYARD_RUN": name}
        if not start:
            return run
        run |= {f"TRAINYARD_START_{key.upper()}": value for key, value in start.items()}
        return {"TRAINYARD_START_DIR": str(self.folder / start.get("run", "")), **run}

    def train(self, name: str, *options: str, count: int = 1, **start: str) -> str:
        """What rank 0 of train.py prints; all ranks succeed."""
        codes, out, errors = run_ranks(
            self.ranks, TRAIN, list(options), self.env(name, **start), count
        )
        assert codes == [0] * count, errors
        return out

    def program(self, name: str, text: str, **start: str) -> tuple[int, str, str]:
        """PROGRAM and `text`."""
        script = self.folder / f"{name}.py"
        script.write_text(PROGRAM + text)
        (code,), out, errors = run_ranks(self.ranks, script, [], self.env(name, **start))
        return code, out, errors

    def refused(self, text: str, **start: str) -> str:
        code, _, errors = self.program("b", text, **start)
        assert code == 1, errors
        return errors.splitlines()[-1]

    def publish(self, name: str, step: int) -> Path:
        """A model of this run, in Hugging Face format."""
        folder = self.folder / "out"
        folder.mkdir(exist_ok=True)
        export_char_gpt(folder)
        text = f"run.publish({str(folder)!r}, metrics={{'eval_loss': {step}.0}}, step={step})"
        code, _, errors = self.program(name, text)
        assert code == 0, errors
        return self.directory(name) / MODELS / step_name(step)


@pytest.fixture
def branch(rank_server: RankServer, tmp_path: Path) -> Iterator[Branch]:
    for server in agent_server():
        yield Branch(rank_server, server, tmp_path)


def state(run_dir: Path, step: int) -> dict[str, object]:
    """Everything that a checkpoint has."""
    directory = run_dir / CHECKPOINTS / step_name(step)
    return {**digests(run_dir, step), "script": json.loads((directory / "script.json").read_text())}


def contents(directory: Path) -> dict[str, str]:
    """sha256 of every file of a run's checkpoints and models."""
    files = (path for part in (CHECKPOINTS, MODELS) for path in (directory / part).rglob("*"))
    return {str(path): file_sha256(path) for path in files if path.is_file()}


@pytest.mark.parametrize(
    ("model", "loader", "ranks"),
    [("plain", "stateful", 1), ("ddp", "steps", 2), ("fsdp", "steps", 2)],
)
def test_a_branch_ends_bitwise_as_a_longer_run(
    branch: Branch, model: str, loader: str, ranks: int
) -> None:
    options = (f"--model={model}", f"--loader={loader}")
    branch.train("whole", *options, "--steps=12", count=ranks)
    branch.train("a", *options, "--steps=7", count=ranks)
    before = contents(branch.directory("a"))
    out = branch.train("b", *options, "--steps=9", count=ranks, run="a", step="5")
    assert out == "trainyard: starting from step 5 of run a\n"
    assert contents(branch.directory("a")) == before, "the other run is only read"
    assert not (branch.directory("b") / CHECKPOINTS / step_name(4)).exists()
    document = branch.server.report.document()
    assert document
    assert (document["startedFrom"], document["resumedFromStep"]) == ("step 5 of run a", 5)
    assert document["lastCheckpoint"]["step"] == 9
    # Its own checkpoint wins over a newer one of the other run.
    branch.train("a", *options, "--steps=12", count=ranks)
    out = branch.train("b", *options, "--steps=12", count=ranks, run="a")
    assert out == "trainyard: resuming from step 9\n"
    whole = state(branch.directory("whole"), 12)
    assert state(branch.directory("b"), 12) == whole


def test_the_checkpoint_is_the_runs_own_before_the_first_step(branch: Branch) -> None:
    branch.train("a", "--steps=3")
    assert branch.train("b", "--steps=3", run="a") == "trainyard: starting from step 3 of run a\n"
    assert state(branch.directory("b"), 3) == state(branch.directory("a"), 3)
    assert branch.train("b", "--steps=4") == "trainyard: resuming from step 3\n"


def test_weights_alone_begin_a_new_run(branch: Branch) -> None:
    branch.train("a", "--steps=3")
    out = branch.train("b", "--steps=1", run="a", what="weights", step="2")
    assert out == "trainyard: starting from the weights of step 2 of run a\n"
    trained = load(branch.directory("a") / CHECKPOINTS / step_name(2))
    begun = load(branch.directory("b") / CHECKPOINTS / step_name(0))
    weights = [name for name in trained if name.startswith("model.")]
    assert weights
    assert all(trained[name].equal(begun[name]) for name in weights)
    assert not any(name.startswith("optimizer.") for name in begun)
    document = branch.server.report.document()
    assert document
    assert document["startedFrom"] == "the weights of step 2 of run a"
    assert "resumedFromStep" not in document


def test_another_number_of_ranks_and_other_data_continue(branch: Branch) -> None:
    branch.train("a", "--model=ddp", "--steps=3", count=2)
    text = """
sampler = trainyard.StepSampler(100, 8)
model = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(), torch.nn.Linear(16, 4)
)
optimizer = torch.optim.AdamW(model.parameters())
class Average:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    def state_dict(self): return {"weights": self.weights}
    def load_state_dict(self, state): pass
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5])
with make(data=sampler, average=Average(), scheduler=scheduler) as state:
    print(state.resume(), sampler.start)
"""
    code, out, errors = branch.program("b", text, run="a")
    assert (code, out) == (0, "trainyard: starting from step 3 of run a\n3 3\n"), errors


def test_the_best_checkpoint(branch: Branch) -> None:
    text = "with make() as state:\n for n in 3, 1, 2: state.save(n, metrics={'eval_loss': n})"
    assert branch.program("a", text)[0] == 0
    code, out, errors = branch.program("b", "print(make().resume())", run="a", step="best")
    assert (code, out) == (0, "trainyard: starting from step 1 of run a\n1\n"), errors
    assert branch.program("c", "with make() as state: state.save(1)")[0] == 0
    assert branch.refused("run.directory /= 'new'\nmake().resume()", run="c", step="best").endswith(
        "has an evaluation loss: set startFrom.step to newest or to a number"
    )


def test_a_checkpoint_that_is_not_there_or_does_not_fit_is_one_line(branch: Branch) -> None:
    resume = "make().resume()"
    line = branch.refused(resume, run="nobody")
    assert "ConfigError: startFrom.run: nobody: there is no checkpoint in " in line
    assert line.endswith("; name a run that has one")
    assert branch.program("a", "with make() as state: state.save(4)")[0] == 0
    assert branch.refused(resume, run="a", step="5").endswith(
        "ConfigError: startFrom.run: a: there is no checkpoint of step 5; set startFrom.step to one"
        " of 4"
    )
    other = "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    wider = "model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))\n"
    assert branch.refused(wider + other + resume, run="a").endswith(
        "ConfigError: startFrom: step 4 of run a does not fit this script"
        " (model.0.weight has the shape (2, 2), in this model (3, 2)): use the same model and"
        " optimizer, or name another run"
    )
    shorter = "model = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
    line = branch.refused(shorter + other + resume, run="a")
    assert "(it has model.1.bias, which this model does not have)" in line
    line = branch.refused(
        "optimizer = torch.optim.AdamW(model.parameters())\n" + resume, run="a", what="everything"
    )
    assert "ConfigError: optimizer: AdamW, but " in line
    assert line.endswith("was saved with SGD: use that again, or set startFrom.what to weights")
    scheduler = "make(scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1)).resume()"
    assert branch.refused(scheduler, run="a").endswith(
        "has no state of scheduler: leave it out, or set startFrom.what to weights"
    )
    code, _, errors = branch.program("b", scheduler, run="a", what="weights")
    assert code == 0, errors
    (branch.folder / "a" / CHECKPOINTS / step_name(4) / "script.json").write_text("{}")
    line = branch.refused("run.directory /= 'c'\n" + resume, run="a")
    assert "CheckpointError: startFrom.run: a: no checkpoint in " in line


def test_a_recipes_checkpoint_is_refused(branch: Branch) -> None:
    assert branch.program("a", "with make() as state: state.save(4)")[0] == 0
    rename = """
import pathlib, shutil
from trainyard_api.checkpoint import Manifest
from trainyard_storage.checkpoints import describe_files, manifest_bytes, read_manifest
step = pathlib.Path(run.directory, "checkpoints", "step-00000004")
(step / "script.json").rename(step / "trainer.json")
manifest = read_manifest(step).model_copy(update={"files": describe_files(step)})
(step / "manifest.json").write_bytes(manifest_bytes(manifest))
"""
    assert branch.program("a", rename)[0] == 0
    assert branch.refused("make().resume()", run="a").endswith(
        "ConfigError: startFrom.run: a: step-00000004 was saved by a recipe; name a run of this"
        " script, or set startFrom.what to weights and load its model from run.start_from"
    )
    branch.publish("a", 4)
    code, out, errors = branch.program(
        "b", "print(run.start_from.name, make().resume())", run="a", what="weights"
    )
    assert (code, out) == (0, "step-00000004 0\n"), errors


def test_a_published_model_is_loaded_with_from_pretrained(branch: Branch) -> None:
    branch.publish("a", 10)
    newest = branch.publish("a", 20)
    load = """
from transformers import AutoModelForCausalLM
print(run.start_from, type(AutoModelForCausalLM.from_pretrained(run.start_from)).__name__)
state = make()
print(state.resume())
state.save(1)
state.close()
"""
    code, out, errors = branch.program("b", load, run="a")
    assert (code, out) == (0, f"{newest} GPT2LMHeadModel\n0\n"), errors
    document = branch.server.report.document()
    assert document
    assert document["startedFrom"] == "the model of step 20 of run a"
    assert "resumedFromStep" not in document
    # The model is there in every attempt; the checkpoint is the run's own.
    code, out, errors = branch.program("b", load, run="a", step="10")
    assert code == 0, errors
    assert out.endswith("step-00000010 GPT2LMHeadModel\ntrainyard: resuming from step 1\n1\n")
    document = branch.server.report.document()
    assert document
    assert document["startedFrom"] == "the model of step 20 of run a"


def test_which_model(branch: Branch) -> None:
    model = branch.publish("a", 10)
    branch.publish("a", 20)
    show = "print(run.start_from)"
    assert branch.program("b", show, run="a", step="best")[1] == f"{model}\n"
    assert branch.program("b", show, dir=str(model))[1] == f"{model}\n"
    plain = branch.folder / "out"  # as save_pretrained() wrote it
    assert branch.program("b", show, dir=str(plain))[1] == f"{plain}\n"
    assert branch.program("b", show)[1] == "None\n"
    assert branch.program("b", "print(run.start_directory)")[1] == "None\n"
    code, out, _ = branch.program("b", "print(run.start_directory)", run="a")
    assert (code, out) == (0, f"{branch.directory('a')}\n")

    assert branch.refused(show, run="a", step="30").endswith(
        "startFrom.run: a: there is no model of step 30; set startFrom.step to one of 20, 10"
    )
    line = branch.refused(show, run="nobody")
    assert "ConfigError: startFrom.run: nobody: there is no model in " in line
    assert line.endswith("or its files from run.start_directory")
    assert branch.refused("make().resume()", run="a").endswith(
        "but there are models: load one from run.start_from before resume()"
    )
    assert branch.refused("make().resume()", dir=str(model)).endswith(
        "load its model from run.start_from"
    )
    (model / "config.json").write_text("{}")
    line = branch.refused(show, run="a", step="10")
    assert "CheckpointError: startFrom.run: a: " in line
    assert line.endswith("name another step")


def test_a_model_with_another_head_begins_from_the_weights(branch: Branch) -> None:
    """What `everything` refuses, since the optimizer's state would not fit either."""
    assert branch.program("a", "with make() as state: state.save(4)")[0] == 0
    branch.publish("a", 4)
    text = """
run.start_from
model = torch.nn.Sequential(torch.nn.Linear(2, 7))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print(make().resume())
"""
    assert "does not fit this script" in branch.refused(text, run="a")
    code, out, errors = branch.program("b", text, run="a", what="weights")
    assert (code, out) == (0, "0\n"), errors
