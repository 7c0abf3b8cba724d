"""The Hub: a wrong name stops the run; an unreachable Hub is waited for, and costs nothing."""

import shutil
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.ports import free_port
from tests.soak.families import write_tokenizer
from tests.support.trainer.hub import files_in, hub
from tests.system.local.life import SAVE_STEPS, Life

AWAY = "HubUnreachable"


def test_an_unreachable_hub_is_waited_for(box: Any, tmp_path: Path) -> None:
    """At the start, and at a restart: a new pod has no cache of what the last one downloaded."""
    folder, cache = tmp_path / "tokenizer", tmp_path / "cache"
    folder.mkdir()
    write_tokenizer(folder)
    repositories, port = {"me/bpe": files_in(folder)}, free_port()
    backoff = {"initialSeconds": 1, "maxSeconds": 1}
    life = Life(box, "hub", recipe="gpt", numProcPerNode=1, maxRestarts=1, backoff=backoff)
    life.env = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(cache)}
    go = box.path / "go"
    life.strike(None, "wait", rank=0, step=6, until=str(go))
    life.strike(None, "signal", rank=0, step=6, signal="SIGKILL")

    with hub(repositories, port):
        life.change({"tokenizer": "me/nothing"})
        life.apply()
        life.has_stopped_by("hub-repository-unknown")

    def waits_for_the_hub() -> bool:
        """Between two attempts, of which the last one has found no Hub; no process is left."""
        status = life.status
        idle = status["phase"] == "Restarting" and status["reason"] == AWAY
        return idle and not box.processes("hub")

    life.change({"tokenizer": "me/bpe"})
    command = box.start("run", life.manifest())
    until(waits_for_the_hub, "the first start waits")
    life.has_restarted_after("hub-away-at-the-start", 2)
    with hub(repositories, port):
        until(Path(f"{go}.awaited").exists, "the run trains")
        until(lambda: life.kept == SAVE_STEPS, "it has saved")
    shutil.rmtree(cache)
    go.touch()
    until(waits_for_the_hub, "the restart waits")
    killed = next(each for each in life.status["attempts"] if each["reason"] == "Signal")
    life.has_restarted_after("hub-away-at-a-restart", killed["number"] + 1)
    with hub(repositories, port):
        life.said = box.end(command)[1]
    life.has_succeeded()
    attempts = life.status["attempts"]
    assert attempts[-1]["resumedFromStep"] == SAVE_STEPS
    assert life.status["restarts"] == 1, "only the killed rank counts"
