"""The quickstart, by the command line, as on a user's machine: it stays on the CPU unless asked."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from tests import patience
from tests.gpu.checkout import ROOT
from tests.gpu.rows import Row, falls, not_here, says
from tests.gpu.setting import Setting
from trainyard_local.store import HOME_ENV
from trainyard_trainer.reporting.history import read_history

SMALL = {"max_steps": 100, "sample_steps": 0, "warmup_steps": 10}
# Nats of the last line: the whole run reaches 1.6, depending on this Python's standard library.
LAST_LOSS = {"small": 3.1, "whole": 1.8}


def quickstart(setting: Setting) -> Iterator[Row]:
    """examples/quickstart.yaml as it is, and then with one GPU."""
    manifest = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
    if setting.small:
        manifest["spec"]["config"] |= SMALL
    yield from _run(setting, "the quickstart", manifest, "2 processes, ddp, fp32, cpu$")
    what = "the quickstart with a GPU"
    if not setting.on_gpu:
        yield not_here(what, "it succeeds, on the GPU")
        return
    manifest["metadata"]["name"] = "quickstart-gpu"
    manifest["spec"] |= {
        "numProcPerNode": 1,
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}},
    }
    yield from _run(setting, what, manifest, "1 process, ddp, fp32, cuda$")


def _run(setting: Setting, what: str, manifest: dict[str, Any], devices: str) -> Iterator[Row]:
    setting.say(what)
    name = manifest["metadata"]["name"]
    file = setting.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(manifest))
    home = setting.folder / "home"
    command = [sys.executable, "-m", "trainyard_cli.main", "run", str(file)]
    done = subprocess.run(
        command,
        env=os.environ | {HOME_ENV: str(home)},
        cwd=setting.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience.SECONDS,
    )
    yield says(f"{what} succeeds", done.stdout, f"^{name} succeeded: finished")
    directory = home / "runs" / name
    log = "".join(path.read_text() for path in sorted(directory.glob("logs/*")))
    yield says(f"{what}: where it trains", log, devices)
    history = read_history(directory / "data/metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in history if "loss" in line}
    yield falls(f"{what}: last loss", losses, LAST_LOSS["small" if setting.small else "whole"])
