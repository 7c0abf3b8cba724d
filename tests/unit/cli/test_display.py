"""What a user sees: a live panel on a terminal, plain lines elsewhere, rank 0's report in both."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import patience
from tests.patience import until
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.status import CheckpointRef
from trainyard_cli.display import LiveDisplay, PlainDisplay, progress_line, sparkline
from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.reconcile import reconcile
from trainyard_local import backend as backend_module
from trainyard_local.backend import LocalBackend, LossPoint
from trainyard_local.display import View
from trainyard_local.store import HOME_ENV, RunDir

REPORT = ProgressReport(
    run="quick",
    attempt=1,
    phase="training",
    ranks_joined=1,
    world_size=1,
    step=50,
    total_steps=200,
    loss=2.5,
    tokens_per_second=12345,
    eta_seconds=70,
    last_checkpoint=CheckpointRef(step=40, digest="sha256:00", time=datetime.now(UTC)),
    sample="def main():\n    return 0",
    time=datetime.now(UTC),
)


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBackend]:
    """A run whose one worker lives (this process holds its lock) and reports as REPORT says."""
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    monkeypatch.setattr(backend_module, "REPORT_TIMEOUT_SECONDS", patience.SECONDS)
    server = HTTPServer(("127.0.0.1", 0), _Report)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    run_dir = RunDir("quick")
    (run_dir.path / "attempts").mkdir(parents=True)
    ports = {"report": server.server_port, "rendezvous": 1}
    (run_dir.path / "attempts" / "1.json").write_text(json.dumps(ports))
    worker = run_dir.workers / "1-0"
    worker.mkdir(parents=True)
    with (worker / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield LocalBackend(run_dir)
    server.shutdown()
    server.server_close()


@pytest.fixture
def running(backend: LocalBackend) -> View:
    """The run after it has been seen training."""
    run = _run("quick")
    observed = backend.observe(run)
    run, _ = backend.apply(run, reconcile(observed))
    return View(run, observed.report, backend.losses)


def test_progress_comes_from_rank_0s_report(backend: LocalBackend, running: View) -> None:
    status = running.run.status
    assert (status.phase, status.progress, status.loss) == ("Running", "50/200", 2.5)
    line = progress_line(running)
    assert line == "step 50/200  loss 2.500  12.3k tokens/s  ETA 1m10s  checkpoint 40"
    assert LocalBackend(backend.dir).losses == [LossPoint(50, 2.5)]


def test_the_report_of_another_run_on_the_port_is_not_taken(backend: LocalBackend) -> None:
    assert backend.observe(_run("quick")).report is not None
    assert backend.observe(_run("another")).report is None


def test_the_panel_shows_what_is_known(running: View, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120)
    console.print(LiveDisplay().panel(running))
    shown = capsys.readouterr().out
    for words in ("quick", "Running", "50/200", "25%", "ETA 1m10s", "loss 2.500", "checkpoint 40"):
        assert words in shown
    assert "│ def main():" in shown


def test_plain_lines_show_events_and_the_summary_shows_the_end(
    running: View, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [
        Event("Normal", "Running", "attempt 1 trains", "1-running"),
        Event("Normal", "Succeeded", "finished in 1s", "succeeded"),
    ]
    PlainDisplay().show(running, events)
    assert capsys.readouterr().out == "Running: attempt 1 trains\n"


def test_history_goes_back_when_training_does(backend: LocalBackend) -> None:
    for step, loss in ((10, 4.0), (20, 3.0), (30, 2.5), (20, 2.9), (30, 2.4)):
        with backend.dir.history_file.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")
    with backend.dir.history_file.open("a") as file:
        file.write('{"step": 40')  # cut short by a crash
    expected = [LossPoint(10, 4.0), LossPoint(20, 2.9), LossPoint(30, 2.4)]
    assert LocalBackend(backend.dir).losses == expected


def test_the_sparkline_falls_as_the_loss_does() -> None:
    line = sparkline([LossPoint(step, 100.0 - step) for step in range(100)], width=8)
    assert line == "█▇▆▅▄▃▂▁"
    assert sparkline([LossPoint(0, 1.0), LossPoint(1, 1.0)]) == "▁▁"
    assert sparkline([LossPoint(0, 1.0)]) == ""


def test_a_terminal_gets_the_live_panel(box: Any) -> None:
    manifest = box.manifest("tty", command=[box.script("torchrun", "#!/bin/sh\nexec sleep 600\n")])
    master, slave = pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "trainyard_cli.main", "run", manifest],
        cwd=box.path,
        env={**os.environ, HOME_ENV: str(box.home), "TERM": "xterm", "COLUMNS": "100"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = bytearray()
    reader = threading.Thread(target=_read_all, args=(master, shown))
    reader.start()
    until(lambda: b"1 process" in shown and b"Ctrl-C stops the run" in shown)
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=patience.SECONDS) == 130
    reader.join()
    assert b"tty is suspended" in shown


def _run(name: str) -> TrainingRun:
    now = datetime.now(UTC)
    return TrainingRun.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name},
            "spec": {"recipe": "char-gpt"},
            "status": {
                "phase": "Pending",
                "attempt": 1,
                "nodes": 1,
                "attempts": [{"number": 1, "startTime": now}],
                "startTime": now,
            },
        }
    )


class _Report(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = REPORT.model_dump_json(by_alias=True).encode() if self.path == "/progress" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _read_all(fd: int, into: bytearray) -> None:
    try:
        while chunk := os.read(fd, 4096):
            into += chunk
    except OSError:  # what Linux says when the terminal's other side is closed
        pass
    finally:
        os.close(fd)


def test_the_report_of_a_script_that_is_empty_but_for_a_hang_hides_no_message() -> None:
    run = TrainingRun.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "mine"},
            "spec": {"command": ["train.py"]},
            "status": {"phase": "Running", "message": "progress unknown: no report"},
        }
    )
    empty = {"step": None, "total_steps": None, "loss": None, "ranks_joined": 0}
    report = REPORT.model_copy(update=empty)
    assert View(run, report).activity == "progress unknown: no report"
