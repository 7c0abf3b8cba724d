"""A local run that meets faults of the corpus one after another, and is fixed after each.

Real torchrun processes, driven by the command line; the faults inside ranks come from
tests/support/local/faulty.
"""

import json
import os
from pathlib import Path
from typing import Any

from tests.faults.corpus import Fault, faults, find, says
from tests.patience import until
from tests.soak.families import text
from tests.support.local.box import Box
from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_storage.checkpoints import newest_valid

HOOK = Path(__file__).parents[2] / "support" / "local" / "faulty"
SAVE_STEPS = 4
# A char-gpt that trains a step in milliseconds.
TINY: dict[str, Any] = {
    "corpus": "text.txt",
    "max_steps": 40,
    "batch_size": 8,
    "block_size": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "dropout": 0.0,
    "eval_steps": 0,
    "eval_batches": 1,
    "log_steps": 1,
    "sample_tokens": 5,
}


class Life:
    """One run, from its first attempt to a good end.

    Attributes:
        spec: what is applied next; `change` changes it.
        env: environment variables of the workers, from the podTemplate.
        said: what the last command printed.
    """

    def __init__(self, box: Box, name: str, **spec: Any) -> None:
        self.box = box
        self.name = name
        self.said = ""
        usual = {
            "recipe": "char-gpt",
            "config": TINY,
            "numProcPerNode": 2,
            "checkpoint": {"everySteps": SAVE_STEPS},
        }
        self.spec: dict[str, Any] = _changed(usual, spec)
        self.env: dict[str, str] = {}
        self._faults: list[dict[str, Any]] = []
        self.corpus = box.path / "text.txt"
        self.corpus.write_text(text())

    def strike(
        self, attempt: int | None, do: str, *, rank: int = 1, step: int | None, **more: Any
    ) -> None:
        """Have a rank of that attempt meet a fault once it has done `step` steps.

        None: of the first attempt that gets there.
        """
        if attempt is None:
            more["once"] = str(self.box.path / f"fault-{len(self._faults)}")
        self._faults.append({"attempt": attempt, "rank": rank, "step": step, "do": do} | more)

    def forget(self) -> None:
        """Plan no faults any more."""
        self._faults.clear()

    def change(self, config: dict[str, Any] | None = None, **spec: Any) -> None:
        """Change the manifest; None removes a setting."""
        if config:
            spec["config"] = _changed(self.spec["config"], config)
        self.spec = _changed(self.spec, spec)

    def manifest(self) -> str:
        variables = {"PYTHONPATH": str(HOOK), "FAULTS": json.dumps(self._faults), **self.env}
        env = [{"name": name, "value": value} for name, value in variables.items()]
        template = {"spec": {"containers": [{"name": "trainer", "env": env}]}}
        return self.box.manifest(self.name, **self.spec, podTemplate=template)

    def apply(self, **env: str) -> None:
        """`trainyard run`, until the run stops."""
        manifest = os.path.relpath(self.box.path / self.manifest(), self.box.folder)
        _, self.said = self.box.cli("run", manifest, **env)

    def retry(self, **env: str) -> None:
        """`trainyard retry`, until the run stops."""
        _, self.said = self.box.cli("retry", self.name, **env)

    @property
    def status(self) -> dict[str, Any]:
        return self.box.status(self.name)

    @property
    def data(self) -> Path:
        return self.box.run_dir(self.name) / "data"

    @property
    def checkpoints(self) -> list[Path]:
        """Directories of the checkpoints, oldest first."""
        return sorted((self.data / CHECKPOINTS).glob("step-*"))

    @property
    def kept(self) -> int:
        """The step of the newest checkpoint that verifies; 0 without one."""
        _, manifest, _ = newest_valid(self.data / CHECKPOINTS)
        return manifest.step if manifest else 0

    @property
    def log(self) -> str:
        """What the workers of the last attempt wrote."""
        files = sorted((self.box.run_dir(self.name) / "logs").glob(f"{self.status['attempt']}-*"))
        return "".join(path.read_text() for path in files)

    def has_stopped_by(self, name: str) -> None:
        """It failed by that fault, and waits for its user."""
        fault, status = find(name), self.status
        assert fault.row.then == "stop"
        assert (status["phase"], status["reason"]) == ("Failed", fault.row.reason), self.said
        assert says(status["message"], fault.line), status["message"]
        assert says(status["message"], fault.row.see), status["message"]
        assert says(self.said, f"{self.name} failed: {fault.row.reason}: …")
        assert "delete" not in self.said, "no printed next step destroys anything"

    def has_restarted_after(self, name: str, attempt: int) -> None:
        """That attempt ended by that fault, and the next one followed by itself."""
        fault = find(name)
        (record,) = [each for each in self.status["attempts"] if each["number"] == attempt]
        assert fault.row.then.startswith("restart")
        assert record["reason"] == fault.row.reason, record
        assert says(record["message"], fault.line), record["message"]
        assert says(record["message"], fault.row.see), record["message"]
        assert record["counted"] == (fault.row.then == "restart")

    def has_continued_with(self, name: str) -> None:
        """It said so in the log, and the run continued."""
        fault = find(name)
        assert fault.row.then == "continue"
        # torchrun copies what a worker writes a moment later.
        until(lambda: says(self.log, fault.line), name, lambda: self.log)

    def has_succeeded(self) -> None:
        """It has reached its last step."""
        assert self.status["phase"] == "Succeeded", self.said
        assert self.status["step"] == self.status["totalSteps"] == self.spec["config"]["max_steps"]


def _changed(old: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (old | changes).items() if value is not None}


def local_cases(*kinds: str) -> list[Fault]:
    """The faults whose local level has one of these injections."""
    return [
        fault
        for fault in faults()
        if fault.case.local and any(getattr(fault.case.local, kind) for kind in kinds)
    ]
