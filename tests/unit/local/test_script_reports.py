"""A user's own script that reports as Kubeflow Trainer's do is shown like a recipe."""

import json
import signal
from pathlib import Path
from typing import Any

from tests.patience import until
from trainyard_api.job import ATTEMPT_ENV, REPORT_PORT_ENV, RESULT_FILE_ENV, RUN_ENV

# Posts each line of its file `statuses` once it is there, and ends after the last one.
SCRIPT = """#!/usr/bin/env python3
import os, pathlib, time, urllib.request
token = open(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read()
statuses = pathlib.Path(os.environ["TRAINYARD_RUN_DIR"], "statuses")
done = 0
while True:
    lines = statuses.read_text().splitlines() if statuses.exists() else []
    for line in lines[done:]:
        if line == "end":
            raise SystemExit
        headers = {"Authorization": "Bearer " + token}
        url = os.environ["KUBEFLOW_TRAINER_SERVER_URL"]
        urllib.request.urlopen(urllib.request.Request(url, line.encode(), headers)).read()
    done = len(lines)
    time.sleep(0.02)
"""


def post(run_dir: Path, line: str) -> None:
    with (run_dir / "data" / "statuses").open("a") as file:
        file.write(f"{line}\n")


def status(percent: int, eta: int, **values: float) -> str:
    metrics = [{"name": name, "value": str(value)} for name, value in values.items()]
    body = {"progressPercentage": percent, "estimatedRemainingSeconds": eta, "metrics": metrics}
    return json.dumps({"trainerStatus": body})


def shown(box: Any, field: str) -> str:
    """A field of the status; empty while there is no run yet."""
    there = (box.run_dir("run") / "run.json").exists()
    return str(box.status("run").get(field, "")) if there else ""


def phase(box: Any) -> str:
    return shown(box, "phase")


def test_a_script_that_reports_is_shown_like_a_recipe(box: Any) -> None:
    command = box.start("run", box.manifest("run", command=[box.script("torchrun", SCRIPT)]))
    run_dir = box.run_dir("run")
    until(lambda: phase(box) == "Running", "it runs")
    assert box.status("run")["message"] == "progress unknown: no report"

    step = {"current_step": 20, "total_steps": 50, "loss": 1.25, "eval_loss": 1.5}
    post(run_dir, status(40, 75, **step, eval_accuracy=0.5))
    until(lambda: box.status("run").get("progress") == "20/50", "its step is shown")
    found = box.status("run")
    assert (found["phase"], found["reason"], found["message"]) == ("Running", "Training", "")
    assert (found["loss"], found["evalLoss"], found["eta"]) == (1.25, 1.5, "1m15s")

    post(run_dir, status(100, 0, train_loss=1.2))
    post(run_dir, "end")
    code, output = box.end(command)
    assert code == 0, output
    assert (box.status("run")["phase"], box.status("run")["progress"]) == ("Succeeded", "50/50")


def test_a_script_without_steps_has_its_percentage(box: Any) -> None:
    command = box.start("run", box.manifest("run", command=[box.script("torchrun", SCRIPT)]))
    until(lambda: phase(box) == "Running", "it runs")
    post(box.run_dir("run"), status(33, 10))
    until(lambda: box.status("run").get("progress") == "33%", "its percentage is shown")
    post(box.run_dir("run"), "end")
    assert box.end(command)[0] == 0


def test_the_agent_knows_the_names_of_the_api() -> None:
    """It can't import them: users' images have no pydantic."""
    import trainyard_agent

    files = Path(trainyard_agent.__file__).parent.glob("*.py")
    text = "".join(file.read_text() for file in files)
    for name in (RUN_ENV, ATTEMPT_ENV, REPORT_PORT_ENV, RESULT_FILE_ENV):
        assert f'"{name}"' in text


def test_what_a_silent_script_uses_is_shown(box: Any) -> None:
    script = "#!/usr/bin/env python3\nmemory = bytearray(64 << 20)\nwhile True: pass\n"
    spec = {"command": ["torchrun", "--no-python", box.script("busy", script)]}
    # The agent looks at the ranks the more often, the sooner a hang is to be found.
    command = box.start("run", box.manifest("run", **spec, hang={"afterSeconds": 5}))
    until(lambda: "CPU cores" in shown(box, "usage"), "its use is shown")
    found = box.status("run")
    assert (found["phase"], found["message"]) == ("Running", "progress unknown: no report")
    assert found["peakMemoryBytes"] > 64 << 20
    assert "1 rank: CPU cores " in found["usage"]
    described = box.cli("describe", "run")[1]
    assert f"Usage:       {found['usage']}" in described
    assert "Peak memory: " in described
    assert "progress unknown: no report" in box.cli("get", "run", "-o", "wide")[1]
    command.send_signal(signal.SIGINT)
    box.end(command)
    assert shown(box, "usage") == ""  # nothing runs any more
