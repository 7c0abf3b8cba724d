"""`trainyard profile`: a real run here, one in a cluster behind kubectl, and refusals."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.support.local.box import Box
from trainyard_api.profile import REQUEST
from trainyard_cli import main as cli

# The trainer's part: what is asked for is recorded at once.
KUBECTL = """\
#!{python}
import json, os, pathlib, subprocess, sys
with open("calls", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[2:]
if words[0] == "get":
    print(pathlib.Path("object.json").read_text())
    sys.exit()
where = os.environ | {{"TRAINYARD_RUN_DIR": os.path.abspath("volume")}}
done = subprocess.run(words[words.index("--") + 1 :], env=where)
request = pathlib.Path("volume/{request}")
if request.exists():
    steps = int(request.read_text())
    request.unlink()
    trace = f"profiles/step-8-{{7 + steps}}/rank-0.json.gz"
    pathlib.Path("volume", trace).parent.mkdir(parents=True)
    pathlib.Path("volume", trace).write_bytes(b"trace")
    run = json.loads(pathlib.Path("object.json").read_text())
    run["status"]["profile"] = trace
    pathlib.Path("object.json").write_text(json.dumps(run))
sys.exit(done.returncode)
"""


def write_object(**status: Any) -> None:
    run = {
        "metadata": {"name": "bard"},
        "spec": {"recipe": "char-gpt"},
        "status": {"phase": "Running", "attempt": 2, **status},
    }
    Path("object.json").write_text(json.dumps(run))


@pytest.fixture
def kubectl(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for kubectl, in a directory of its own: it answers from object.json."""
    programs = here / "bin"
    programs.mkdir()
    (here / "volume").mkdir()
    (programs / "kubectl").write_text(KUBECTL.format(python=sys.executable, request=REQUEST))
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("trainyard_cli.profile.ClusterRun.poll_seconds", 0.01)
    return here


@pytest.mark.slow
def test_a_running_run_is_recorded_and_described(box: Box) -> None:
    (box.path / "text").write_text("to be or not to be, that is the question\n" * 200)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "batch_size": 2}
    config = {"corpus": "text", "max_steps": 10_000_000, "eval_steps": 0, **shape}
    run = box.start("run", box.manifest("bard", recipe="char-gpt", config=config))
    file = box.run_dir("bard") / "run.json"
    until(lambda: file.is_file() and "lastCheckpoint" in box.status("bard"))
    code, output = box.cli("profile", "bard", "--steps", "2")
    assert code == 0, output
    trace = box.run_dir("bard") / "data" / box.status("bard")["profile"]
    assert f"recorded in {trace}\nopen it at https://ui.perfetto.dev" in output
    with gzip.open(trace) as opened:
        names = [event["name"] for event in json.load(opened)["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == 2
    assert f"Profile:     {trace} (open it at" in box.cli("describe", "bard")[1]
    assert box.cli("suspend", "bard")[0] == 0
    box.end(run)
    code, output = box.cli("profile", "bard")
    said = "trainyard: bard is Suspended: only a run that is Running can be recorded\n"
    assert (code, output) == (cli.EXIT_REFUSED, said)


def test_a_run_in_a_cluster_is_recorded_through_kubectl(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_object(profile="profiles/step-1-2/rank-0.json.gz")
    assert cli.main(["profile", "bard", "--context", "gke", "-n", "ml", "--steps", "2"]) == 0
    calls = [json.loads(line) for line in (kubectl / "calls").read_text().splitlines()]
    common = ["--context", "gke", "--namespace", "ml"]
    assert all(call[:4] == common for call in calls)
    assert calls[1][4:9] == ["exec", "bard-2-0", "-c", "trainer", "--"]
    output = capsys.readouterr().out
    assert "recorded in profiles/step-8-9/rank-0.json.gz of the run's directory" in output
    command = next(line for line in output.splitlines() if line.startswith("  kubectl"))
    subprocess.run(command, shell=True, check=True)
    assert (kubectl / "bard-step-8-9.json.gz").read_bytes() == b"trace"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"phase": "Pending"}, "bard is Pending: only a run that is Running can be recorded"),
        ({"phase": "Succeeded"}, "bard is Succeeded: only a run"),
    ],
)
def test_only_a_run_that_trains_is_asked(
    kubectl: Path, capsys: pytest.CaptureFixture[str], status: dict[str, Any], said: str
) -> None:
    write_object(**status)
    refused(["profile", "bard", "--cluster"], said, capsys)
    assert "exec" not in (kubectl / "calls").read_text()


def test_another_attempt_than_the_asked_one_ends_the_wait(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_object()
    program = (kubectl / "bin" / "kubectl").read_text()
    restarted = program.replace('run["status"]["profile"] = trace', 'run["status"]["attempt"] = 3')
    (kubectl / "bin" / "kubectl").write_text(restarted)
    refused(["profile", "bard", "--cluster"], "bard is in attempt 3 now; if it has", capsys)


def test_wrong_requests_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(here))
    many = ["profile", "bard", "--cluster", "--steps", "11"]
    refused(many, "--steps 11: give 1 to 10: a trace has every operation of each step", capsys)
    refused(["profile", "bard", "--cluster"], "kubectl is not installed: --cluster uses", capsys)
    refused(["profile", "bard"], "no run named 'bard' on this machine", capsys)


def test_a_script_is_told_how_to_record_itself(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("object.json").write_text('{"spec": {"command": ["a.py"]}, "status": {}}')
    refused(["profile", "bard", "--cluster"], "bard runs a command of its own: use torch", capsys)


def test_what_kubectl_says_is_passed_on(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "bin" / "kubectl").write_text("#!/bin/sh\necho 'Error: not found' >&2\nexit 1\n")
    refused(["profile", "bard", "--cluster"], "kubectl get: Error: not found", capsys)


def refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert error.startswith(f"trainyard: {said}")
    assert len(error.splitlines()) == 1
