"""What MLflow and TensorBoard get of a run, and that it costs the run nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import patience
from tests.patience import until
from tests.ports import free_port
from tests.support.trainer.ranks import RankServer, Run
from trainyard_api.job import TrainerJob
from trainyard_trainer.reporting.history import History, read_history
from trainyard_trainer.reporting.trackers import __main__ as forward
from trainyard_trainer.reporting.trackers.sink import metrics_of
from trainyard_trainer.reporting.trackers.to_mlflow import STATE_FILE, MLflowSink
from trainyard_trainer.reporting.trackers.to_tensorboard import DIRECTORY

MakeJob = Callable[..., TrainerJob]
METRICS = ["eval_loss", "grad_norm", "learning_rate", "loss", "samples_per_second"]


@pytest.fixture(scope="module", autouse=True)
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow server` on this machine. It takes long to start: meanwhile other tests run."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers=1"]
    command += ["--host=127.0.0.1", f"--port={port}", "--backend-store-uri=sqlite:///runs.db"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture
def mlflow_uri(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the running server, also in this process's environment."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{mlflow_server}/health", timeout=patience.SECONDS):
                return True
        except OSError:
            return False

    until(answers, "the MLflow server answers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


@pytest.fixture(autouse=True)
def _tracker_overrides(rank_server: RankServer) -> None:
    rank_server.preload("tests.system.trainer.tracker_overrides", "tests.support.trainer.slow_rank")


def send(run_dir: Path, tracker: str) -> int:
    """What a user types after an outage."""
    return forward.main([str(run_dir), tracker])


def logged(run_dir: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, as metrics.jsonl has it."""
    found: dict[str, dict[int, float]] = {}
    for record in read_history(run_dir / "metrics.jsonl"):
        for name, value in metrics_of(record).items():
            found.setdefault(name, {})[record["step"]] = value
    return found


def in_mlflow(uri: str, run_dir: Path) -> tuple[Any, dict[str, list[tuple[int, float]]]]:
    """The MLflow run of a run directory, and all that MLflow keeps of its metrics."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run_id = json.loads((run_dir / STATE_FILE).read_text())["run_id"]
    run = client.get_run(run_id)
    metrics = {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in run.data.metrics
    }
    return run, metrics


def test_mlflow_without_an_address_is_refused(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(report_to=["mlflow"]), ranks=2, env={"MLFLOW_TRACKING_URI": ""})
    assert run.wait(terminate=False) == [78, 78]
    (line,) = run.err.splitlines()
    assert line.startswith("ConfigError: config.report_to: mlflow needs the address of its server:")
    assert "MLFLOW_TRACKING_URI" in line


def test_tensorboard_shows_what_the_history_holds(
    make_job: MakeJob, launch: Any, train: Any
) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    config = {"report_to": ["tensorboard"], "lr_decay_steps": 12}
    first: Run = launch(make_job(max_steps=100_000, **config))
    board = first.run_dir / DIRECTORY
    first.wait_until(lambda: bool(list(board.glob("events.*"))), "there is an event file")
    first.wait_for_step(9)
    watching = event_accumulator.EventAccumulator(str(board))  # as an open TensorBoard
    first.wait_until(
        lambda: "loss" in watching.Reload().Tags()["scalars"], "TensorBoard shows something"
    )
    first.kill()
    shorter = make_job({"attempt": 2}, max_steps=max(logged(first.run_dir)["loss"]) + 4, **config)
    second: Run = train(shorter)
    assert second.result["resumedFromStep"] > 0
    watching.Reload()
    assert send(second.run_dir, "tensorboard") == 0
    assert len(list(board.iterdir())) == 2  # the one before is left to an open TensorBoard
    reloaded = event_accumulator.EventAccumulator(str(board)).Reload()
    expected = logged(second.run_dir)
    assert expected.keys() >= set(METRICS)
    for shown in (reloaded, watching.Reload()):
        for name, points in expected.items():
            assert [event.step for event in shown.Scalars(name)] == sorted(points)
            values = [event.value for event in shown.Scalars(name)]
            assert values == pytest.approx([points[step] for step in sorted(points)])
    assert "_hparams_/session_start_info" in reloaded.summary_metadata
    assert "_hparams_/session_end_info" in reloaded.summary_metadata


def test_an_outage_is_reported_once_and_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(forward, "RETRY", 0.0)
    history = History(tmp_path, "r", None, 1)
    sink = MLflowSink(tmp_path)
    tries = []

    def send_and_count(records: Any) -> None:
        tries.append(len(records))
        history.add(step=len(tries), loss=1.0)
        if len(tries) == 4:
            history.end(4, "FINISHED")
        MLflowSink.send(sink, records)

    monkeypatch.setattr(sink, "send", send_and_count)
    lines = forward.Lines(history.path)
    assert forward.forward(lines, sink, trainer=os.getppid()) == 1
    assert tries == [1, 2, 3, 4, 6]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: mlflow: ")
    assert "Connection refused" in line
    assert line.endswith("; training continues, its metrics are sent later")


def test_a_failed_run_ends_its_history_with_failed(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(learning_rate=1e30, max_grad_norm=0))
    assert run.wait() == [1]
    end = run.history()[-1]
    assert (end["event"], end["status"]) == ("ended", "FAILED")


def test_a_dead_server_costs_a_warning(
    make_job: MakeJob, train: Any, tmp_path: Path, mlflow_uri: str
) -> None:
    plain: Run = train(make_job({"run_dir": str(tmp_path / "plain")}))
    dead = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    run: Run = train(make_job(report_to=["mlflow"]), env=dead)
    assert run.losses() == plain.losses()
    assert run.out.count("\n") == plain.out.count("\n")
    assert 1 <= len(run.err.splitlines()) <= 2  # an outage, if there was time to meet it
    command = f"python -m trainyard_trainer.reporting.trackers {run.run_dir} mlflow"
    assert run.err.splitlines()[-1] == (
        f"warning: mlflow does not have the whole run; to send the rest: {command}"
    )
    assert send(run.run_dir, "mlflow") == 0  # the server is back
    _, metrics = in_mlflow(mlflow_uri, run.run_dir)
    assert {name: dict(points) for name, points in metrics.items()} == logged(run.run_dir)


class SlowProxy:
    """Stands before the server and takes all the time it is given."""

    def __init__(self, target: str) -> None:
        self.asked = threading.Event()
        self.answers = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.asked.set()
                proxy.answers.wait()
                data = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
                headers = {"Content-Type": self.headers.get("Content-Type", "")}
                request = urllib.request.Request(
                    target + self.path, data, headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(request) as response:
                        status, body = response.status, response.read()
                except urllib.error.HTTPError as error:
                    status, body = error.code, error.read()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()


def test_no_step_waits_for_a_slow_server(make_job: MakeJob, launch: Any, mlflow_uri: str) -> None:
    proxy = SlowProxy(mlflow_uri)
    try:
        slow = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server.server_port}"}
        job = make_job(report_to=["mlflow"], max_steps=100_000)
        # Its steps leave time to the forwarding process, which has the lowest priority.
        run: Run = launch(job, env=slow | {"SLOW_RANK": "0:0.02"})
        run.wait_until(proxy.asked.is_set, "MLflow is asked")
        asked_at = max(run.losses())
        run.wait_for_step(asked_at + 20)  # with the first answer still to come
        os.kill(run.pids[0], signal.SIGINT)
        assert run.wait() == [130]
        assert run.err == ""
    finally:
        proxy.close()


def test_one_mlflow_run_for_all_attempts(
    make_job: MakeJob, launch: Any, train: Any, mlflow_uri: str
) -> None:
    env = {"MLFLOW_TRACKING_URI": mlflow_uri, "MLFLOW_EXPERIMENT_NAME": "shakespeare"}
    config = {"report_to": ["mlflow"], "lr_decay_steps": 12, "log_steps": 2}
    slow = {"SLOW_RANK": "0:0.02"}
    first: Run = launch(make_job(max_steps=100_000, **config), ranks=2, env=env | slow)
    first.wait_until(
        lambda: (
            (first.run_dir / STATE_FILE).exists()
            and "loss" in json.loads((first.run_dir / STATE_FILE).read_text())["last_steps"]
        ),
        "MLflow has metrics",
    )
    first.kill()
    before = logged(first.run_dir)
    last = max(before["loss"]) + 4
    second: Run = train(
        make_job({"attempt": 2}, max_steps=last, **config),
        ranks=2,
        env=env | {"DRAIN_TIMEOUT": str(patience.SECONDS)},
    )
    assert second.err == ""
    run, metrics = in_mlflow(mlflow_uri, second.run_dir)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny, 2 processes"
    assert run.data.params["learning_rate"] == "0.01"
    assert run.data.params["world_size"] == "2"
    assert run.data.params["max_steps"] == "100000"
    assert run.data.tags["trainyard.attempt-2.max_steps"] == str(last)
    after = logged(second.run_dir)
    assert metrics.keys() == after.keys() >= {*METRICS, "train_runtime"}
    for name, points in metrics.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{name} goes back or has a step twice"
        assert set(steps) == after[name].keys() | before.get(name, after[name]).keys()
        if name in ("loss", "eval_loss", "learning_rate"):
            assert dict(points) == before.get(name, {}) | after[name]


def test_rates_after_a_resume_are_those_of_its_steps(
    make_job: MakeJob, launch: Any, train: Any
) -> None:
    seconds, config = 0.03, {"lr_decay_steps": 200, "log_steps": 3, "eval_steps": 0}
    env = {"SLOW_RANK": f"0:{seconds}"}
    first: Run = launch(make_job(max_steps=100_000, **config), env=env)
    first.wait_for_step(60)
    first.kill()
    last = max(first.losses()) + 9
    second: Run = train(make_job({"attempt": 2}, max_steps=last, **config), env=env)
    resumed = second.result["resumedFromStep"]
    new = [r for r in second.history() if "loss" in r and r["step"] > resumed]
    assert resumed > 40
    assert len(new) >= 3
    for record in new:
        # All the steps since step 0 in the time since the restart would be a multiple of this.
        assert record["samples_per_second"] <= 8 / seconds
        assert record["tokens_per_second"] == pytest.approx(16 * record["samples_per_second"])
    assert second.result["stepSeconds"]["p50"] >= seconds


def test_a_run_started_again_is_another_mlflow_run(tmp_path: Path, mlflow_uri: str) -> None:
    runs = []
    for attempt, losses, status in ((1, 0, "FAILED"), (2, 2, ""), (3, 1, "KILLED")):
        history = History(tmp_path, "r", None, attempt, {"config": {"lr": 1 / attempt}})
        for step in range(losses):
            history.add(step=step + 1, loss=float(attempt))
        if status:
            history.end(losses, status)
        assert send(tmp_path, "mlflow") == 0
        run, metrics = in_mlflow(mlflow_uri, tmp_path)
        assert [value for _, value in metrics.get("loss", [])] == losses * [float(attempt)]
        assert run.info.status == (status or "RUNNING")
        runs.append(run.info.run_id)
    # An attempt that logged nothing hasn't used its MLflow run up; one that has, has.
    assert runs[0] == runs[1] != runs[2]


def test_only_one_sends_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    History(tmp_path, "r", None, 1)
    with forward.lock(tmp_path, "mlflow"):
        assert send(tmp_path, "mlflow") == 1
    assert capsys.readouterr().out == f"{tmp_path} is already being sent to mlflow\n"
    assert send(tmp_path / "nowhere", "mlflow") == 1
    assert "nowhere" in capsys.readouterr().err
