"""A study on this machine, killed with SIGKILL before its first write, then before its second."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from tests.patience import SECONDS
from tests.support.study.builders import make_study
from trainyard_api.study import ScalingStudy
from trainyard_local import backend, store, studies, workers
from trainyard_local.display import StudyDisplay
from trainyard_local.driver import Stop
from trainyard_local.studies import StudyDir, StudyRunner

# In torchrun's place: trains at once. For each file silent-N a run of batch 2 reports nothing.
AGENT = f"""#!{sys.executable} -IS
import json, os, pathlib
job = json.loads(os.environ["TRAINYARD_JOB"])
batch = job["config"]["batch_size"]
print("trained batches of", batch)
marks = sorted(pathlib.Path().glob("silent-*"))
if batch == 2 and marks:
    marks[0].unlink()
    raise SystemExit
report = {{"run": job["run"], "attempt": job.get("attempt", 1), "phase": "finished",
    "ranksJoined": 1, "worldSize": 1, "step": 60, "totalSteps": 60, "batchSize": batch,
    "stepSeconds": {{"mean": 0.1, "p50": 0.1, "p99": 0.2}}, "time": "2026-01-01T00:00:00Z"}}
pathlib.Path(os.environ["TRAINYARD_RESULT_FILE"]).write_text(json.dumps(report))
"""
# What is done to disk and processes, in the order in which it happens.
WRITES: tuple[tuple[Any, str], ...] = (
    (studies, "write_text_atomic"),
    (store, "write_text_atomic"),
    (workers, "write_text_atomic"),
    (backend, "append_json_line"),
    (workers.Workers, "_start"),
    (store, "_remove"),
)


class Lines(StudyDisplay):
    """Keeps what is said in a file."""

    def say(self, text: str) -> None:
        with Path("said").open("a") as file:
            file.write(f"{text}\n")


class Machine:
    """A working directory, and the study that is measured in it."""

    def __init__(self, path: Path, silent: int) -> None:
        self.path = path
        path.mkdir()
        for number in range(silent):
            (path / f"silent-{number}").touch()
        self.directory = StudyDir("s", path / "study")

    def measure(self, last: int | None = None) -> bool:
        """Measure in a process that dies just before its `last`-th write; whether it survived."""
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(int(SECONDS))
                os.chdir(self.path)
                if last is not None:
                    _die_before(last)
                self._measure()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert status in (0, signal.SIGKILL), status
        return status == 0

    def _measure(self) -> None:
        study = make_study(
            template={"spec": {"recipe": "char-gpt"}},
            matrix={"config.batch_size": [1, 2]},
            repeats=1,
        )
        with self.directory.locked():
            runner = StudyRunner(self.directory, self.directory.load() or study, threads=1)
            runner.measure(Lines(), Stop())

    @property
    def study(self) -> ScalingStudy:
        found = self.directory.load()
        assert found
        return found

    def outcome(self) -> Any:
        """All that the study says, but not when and how it came about."""
        wire = self.study.status.to_wire()
        for name in ("startTime", "completionTime", "message", "conditions"):
            wire.pop(name)
        for cell in wire["cells"]:
            del cell["unreported"]
            for found in cell["measurements"]:
                del found["seconds"]
        return wire


def _die_before(number: int) -> None:
    left = number

    def dying(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for owner, name in WRITES:
        setattr(owner, name, dying(getattr(owner, name)))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python's directory comes first on the PATH of workers: there is our torchrun."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "torchrun").write_text(AGENT)
    (binaries / "torchrun").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))


@pytest.mark.usefixtures("agent")
def test_killed_at_every_write_it_ends_with_the_same_figures(tmp_path: Path) -> None:
    calm = Machine(tmp_path / "calm", silent=1)
    assert calm.measure()
    assert calm.study.status.progress == "2/2"
    assert [len(cell.unreported) for cell in calm.study.status.cells] == [0, 1]
    killed = Machine(tmp_path / "killed", silent=1)
    last = 1
    while not killed.measure(last):
        last += 1
    assert last > 10, "hardly anything was killed"
    assert killed.outcome() == calm.outcome()
    assert not killed.directory.work.exists()


@pytest.mark.usefixtures("agent")
def test_a_run_that_never_reports_is_listed_with_its_log(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "silent", silent=3)
    assert machine.measure()
    one, two = machine.study.status.cells
    assert (len(one.measurements), one.failure) == (1, None)
    assert two.failure
    assert (two.failure.reason, len(two.unreported)) == ("NoReport", 2)
    assert two.failure.log
    assert "trained batches of 2" in (machine.directory.path / two.failure.log).read_text()
    said = (machine.path / "said").read_text().splitlines()
    again = "batch_size=2; repeat 1 is run again: it succeeded without reporting its step times"
    assert said == [again, again]
