"""The callbacks that the package trainyard has for frameworks, in real trainers."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.support.frameworks import SCRIPTS
from tests.support.sdk.scripts import agent_server, start, variables
from trainyard_agent.server import ReportServer
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import verify_model


@pytest.fixture
def server() -> Iterator[ReportServer]:
    yield from agent_server()


CALLBACKS = {
    "accelerate": """
from accelerate import Accelerator
from trainyard.accelerate import TrainyardTracker
accelerator = Accelerator(cpu=True, log_with=TrainyardTracker())
accelerator.init_trackers("mine", config={"total": 9})
accelerator.log({"loss": 1.5, "eval_loss": 2.5}, step=3)
accelerator.end_training()
""",
    "lightning": """
import lightning.pytorch as pl, torch
from trainyard.lightning import TrainyardCallback
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
    def training_step(self, batch, _):
        loss = (self.weight * batch).sum() * 0 + 1.5
        self.log("loss", loss)
        return loss
    def validation_step(self, batch, _):
        self.log("val_loss", torch.tensor(2.5))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
data = torch.utils.data.DataLoader(torch.ones(9, 1))
off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
callback = TrainyardCallback()
assert callback.resume_path is None
trainer = pl.Trainer(max_steps=9, accelerator="cpu", callbacks=[callback],
    enable_model_summary=False, **off)
trainer.fit(Model(), data, data)
""",
    "transformers": """
import torch, transformers
from trainyard.transformers import TrainyardCallback
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
    def forward(self, x):
        return {"loss": (self.weight * x).sum() * 0 + 1.5}
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 9
    def __getitem__(self, index):
        return {"x": torch.ones(1)}
arguments = transformers.TrainingArguments("out", max_steps=9, use_cpu=True, disable_tqdm=True,
    save_strategy="no", report_to="none", per_device_train_batch_size=1, logging_steps=3)
callbacks = [TrainyardCallback()]
transformers.Trainer(Model(), arguments, train_dataset=Rows(), callbacks=callbacks).train()
""",
}


@pytest.mark.parametrize("framework", CALLBACKS)
def test_callbacks_report_what_their_framework_logs(
    server: ReportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    monkeypatch.chdir(tmp_path)
    # Theirs would say the same in another way.
    agent = variables(server, tmp_path) | {"DISABLE_KUBEFLOW_INTEGRATION": "TRUE"}
    child = start(CALLBACKS[framework], agent)
    out, errors = child.communicate()
    assert child.returncode == 0, out + errors
    document = server.report.document()
    assert document
    assert (document["loss"], document["totalSteps"]) == (1.5, 9)
    assert document["step"] == (3 if framework == "accelerate" else 9)
    assert document.get("evalLoss") == (None if framework == "transformers" else 2.5)


# Each trains until it is stopped, and 20 steps more in the next attempt.
STOPPED = {
    "lightning": """
import lightning.pytorch as pl, torch
from trainyard.lightning import TrainyardCallback
class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
    def training_step(self, batch, _):
        return (self.weight * batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-9)
callback = TrainyardCallback()
path, steps = callback.resume_path, 1_000_000
if path:
    steps = torch.load(path, weights_only=False)["global_step"] + 20
data = torch.utils.data.DataLoader(torch.ones(1000, 1))
off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer = pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", devices=2,
    callbacks=[callback], enable_model_summary=False, **off)
trainer.fit(Model(), data, ckpt_path=path)
""",
    "transformers": """
import torch, transformers
from transformers.trainer_utils import get_last_checkpoint
from trainyard.transformers import TrainyardCallback
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
    def forward(self, x):
        return {"loss": (self.weight * x).sum()}
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        return {"x": torch.ones(1)}
callback = TrainyardCallback()
out = callback.run.directory / "out"
path = get_last_checkpoint(out) if out.exists() else None
steps = int(path.rpartition("-")[2]) + 20 if path else 1_000_000
arguments = transformers.TrainingArguments(str(out), max_steps=steps, use_cpu=True,
    disable_tqdm=True, save_strategy="no", report_to="none", per_device_train_batch_size=1,
    learning_rate=1e-9)
trainer = transformers.Trainer(Model(), arguments, train_dataset=Rows(), callbacks=[callback])
trainer.train(resume_from_checkpoint=path)
torch.distributed.destroy_process_group()
""",
    "trl": (SCRIPTS / "trl_two_lines.py").read_text(),
}


@pytest.mark.parametrize("framework", STOPPED)
def test_callbacks_stop_all_ranks_saved_and_the_next_attempt_continues(
    box: Any, framework: str
) -> None:
    script = box.script(f"{framework}_script.py", STOPPED[framework])
    manifest = box.manifest("mine", command=[script], numProcPerNode=2)
    command = box.start("run", manifest)
    until((box.run_dir("mine") / "run.json").exists, "the run is there")
    until(lambda: box.status("mine").get("step", 0) > 0, "it trains")
    if framework == "trl":
        until(lambda: {"loss", "etaSeconds", "tokensPerSecond"} <= set(box.status("mine")), "pace")
    command.send_signal(signal.SIGINT)
    box.end(command)
    status = box.status("mine")
    assert status["phase"] == "Suspended"
    code, output = box.cli("run", manifest)
    assert code == 0, output
    ended = box.status("mine")
    assert ended["phase"] == "Succeeded"
    assert ended["step"] == ended["totalSteps"] >= status["step"] + 20
    if framework == "trl":
        source = verify_model(box.run_dir("mine") / "data" / ended["model"]["path"])
        LanguageModel.load(source, "cpu").check()
