"""`trainyard run` with real torchrun: survives kills, and names a user's mistake."""

import json
import os
import signal
import urllib.error
import urllib.request
from typing import Any

from tests.patience import until
from tests.system.local.life import Life

# Rank 1 of the first attempt writes its process id and waits to be killed.
STUBBORN = """
import os, pathlib, sys, time
rank, data = os.environ["RANK"], pathlib.Path(os.environ["TRAINYARD_RUN_DIR"])
print(f"rank {rank} of {os.environ['WORLD_SIZE']} says {os.environ['GREETING']}", flush=True)
if not (data / "again").exists():
    if rank == "1":
        (data / "again.tmp").write_text(str(os.getpid()))
        (data / "again.tmp").rename(data / "again")
    time.sleep(600)
"""

# Counts its starts beside a checkpoint, and fails.
KEEPS = """
import os, pathlib, sys
data = pathlib.Path(os.environ["TRAINYARD_RUN_DIR"]) / "checkpoints" / "step-00000007"
data.mkdir(parents=True, exist_ok=True)
with (data / "starts").open("a") as file:
    file.write("x")
sys.exit(3)
"""


def test_survives_a_killed_cli_and_a_killed_rank(box: Any) -> None:
    box.script("train.py", STUBBORN)
    trainer = {"name": "trainer", "env": [{"name": "GREETING", "value": "hello"}]}
    manifest = box.manifest(
        "quick",
        command=["train.py"],  # relative to where the run was started
        numNodes=2,
        image="example.com/own:1",
        podTemplate={"spec": {"containers": [trainer]}},
    )
    first = box.start("run", manifest)
    marker = box.run_dir("quick") / "data" / "again"
    until(marker.is_file, "rank 1 starts")

    code, output = box.cli("run", manifest)
    assert code == 2
    assert f"already being run by process {first.pid}" in output
    assert len(output.splitlines()) == 1

    first.kill()  # SIGKILL: no chance to tidy up
    assert "note: image has no effect on one machine" in box.end(first)[1]
    before = set(box.processes("quick"))
    assert "no process drives it now" in box.cli("get")[1]

    second = box.start("run", manifest)
    until(lambda: (box.run_dir("quick") / "lock").read_text() == str(second.pid))
    os.kill(int(marker.read_text()), signal.SIGKILL)
    code, output = box.end(second)
    assert code == 0, output
    status = box.status("quick")
    assert [item["outcome"] for item in status["attempts"]] == ["Failed", "Succeeded"]
    assert status["attempts"][0]["reason"] == "Signal"
    assert "rank 1: killed by SIGKILL" in status["attempts"][0]["message"]
    assert status["restarts"] == 1
    assert not before & set(box.processes("quick"))

    logs = [box.cli("logs", "quick", "--attempt", "2", "--node", str(node))[1] for node in (0, 1)]
    assert "rank 0 of 2 says hello" in logs[0]
    assert "rank 1 of 2 says hello" in logs[1]
    assert "rank 0 of 2 says hello" in box.cli("logs", "quick", "--attempt", "1")[1]

    code, output = box.cli("run", manifest)
    assert (code, len(output.splitlines())) == (0, 1)
    assert "already succeeded" in output
    assert box.status("quick") == status


def test_a_users_exception_is_reported_and_fixed(box: Any) -> None:
    box.script("bad.py", "def load():\n    raise ValueError('corpus has 3 characters')\nload()\n")
    manifest = box.manifest("bad", command=["bad.py"], numProcPerNode=2)
    code, output = box.cli("run", manifest)
    assert code == 1
    assert "bad failed: UserException: bad-1-0: ValueError: corpus has 3 characters" in output
    assert str(box.run_dir("bad") / "logs" / "1-0.log") in output
    status = box.status("bad")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    code, output = box.cli("run", manifest)
    assert code == 1
    assert "fix bad.yaml and run it again, or retry without a change: trainyard retry bad" in output
    assert box.status("bad")["attempt"] == 1

    box.script("bad.py", "print('fixed')\n")
    code, output = box.cli("retry", "bad")
    assert code == 0, output
    status = box.status("bad")
    assert [attempt["outcome"] for attempt in status["attempts"]] == ["Failed", "Succeeded"]
    code, output = box.cli("retry", "bad")
    assert (code, len(output.splitlines())) == (2, 1)
    assert "has already succeeded" in output


def test_a_fixed_manifest_brings_a_failed_run_back_and_keeps_its_data(box: Any) -> None:
    box.script("keeps.py", KEEPS)
    spec = {"command": ["keeps.py", "no"], "maxRestarts": 0}
    code, output = box.cli("run", box.manifest("keeps", **spec))
    assert code == 1, output
    assert "fixed   trainyard run keeps.yaml" in output
    assert "delete" not in output  # no next step that is printed destroys anything
    box.script("keeps.py", KEEPS.replace("sys.exit(3)", "pass"))
    code, output = box.cli("run", box.manifest("keeps", **spec | {"maxRestarts": 1}))
    assert code == 0, output
    data = box.run_dir("keeps") / "data" / "checkpoints" / "step-00000007"
    assert (data / "starts").read_text() == "xx"

    code, output = box.cli("delete", "keeps")
    assert (code, len(output.splitlines())) == (2, 1)
    assert "destroys 1 checkpoint: add --yes, or --keep-data to keep them" in output
    code, output = box.cli("delete", "keeps", "--keep-data")
    assert code == 0, output
    assert data.is_dir()
    code, output = box.cli("run", box.manifest("keeps", **spec))
    assert code == 0, output
    assert (data / "starts").read_text() == "xxx"
    assert box.cli("delete", "keeps", "--yes")[0] == 0
    assert not data.exists()


def test_the_agents_of_a_recipe_show_what_every_rank_uses(box: Any) -> None:
    life = Life(box, "seen", numNodes=2, numProcPerNode=1)
    life.change(config={"max_steps": 1_000_000})
    command = box.start("run", life.manifest())
    attempt = box.run_dir("seen") / "attempts" / "1.json"
    until(attempt.is_file, "the first attempt")
    port = json.loads(attempt.read_text())["report"]

    def series(node: int) -> str:
        try:
            url = f"http://127.0.0.{node + 1}:{port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:  # not yet
            return ""

    for rank in (0, 1):
        memory = f'trainyard_agent_rank_memory_bytes{{run="seen",rank="{rank}"}} '
        until(lambda rank=rank, memory=memory: memory in series(rank), memory)  # type: ignore[misc]
    until(lambda: "trainyard_step_seconds_bucket" in series(0), "it trains")
    assert "trainyard_step" not in series(1)  # of rank 0 alone
    usage = "2 ranks: CPU cores "
    until(lambda: life.status.get("usage", "").startswith(usage), usage, lambda: str(life.status))
    command.send_signal(signal.SIGINT)
    assert box.end(command)[0] == 130
    assert life.status["phase"] == "Suspended"
