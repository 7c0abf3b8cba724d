"""A run's metrics in MLflow, one MLflow run for all attempts that resume from one another."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainyard_storage.files import write_text_atomic
from trainyard_trainer.errors import type_and_message
from trainyard_trainer.reporting.trackers.sink import Record, Unreachable, metrics_of, settings_of

STATE_FILE = "mlflow.json"
# MLflow's limits per request.
MAX_METRICS = 1000
MAX_PARAMS = 100
# Fail fast: the caller retries, instead of the client for minutes.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
QUOTES = "\"')>"


class MLflowSink:
    """Sends to the server of MLFLOW_TRACKING_URI.

    MLflow keeps every value it receives, so only steps beyond a metric's last are sent: what a
    resumed attempt repeats is there already, with the same values. RUN_DIR/mlflow.json has the
    MLflow run and each metric's last step.
    """

    name = "mlflow"

    def __init__(self, run_dir: Path) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        import logging

        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would log every retry
        self._path = run_dir / STATE_FILE
        self._client = MlflowClient()
        self._error = MlflowException
        self._checked = False  # that the server has the MLflow run
        self._state: dict[str, Any] = {}
        if self._path.exists():
            self._state = json.loads(self._path.read_text())

    def send(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            for record in records:
                if record.get("event") in ("started", "resumed"):
                    self._begin(record)
            self._log(records)
        except self._error as error:
            raise Unreachable(_short(error)) from None

    def finish(self, status: str) -> None:
        if self._state.get("status") == status:
            return
        try:
            self._client.set_terminated(self._state["run_id"], status)
        except self._error as error:
            raise Unreachable(_short(error)) from None
        self._update_state(status=status)

    def _begin(self, record: Record) -> None:
        """An attempt begins: create an MLflow run, or continue the existing one."""
        if not self._checked and self._state:
            self._reset_if_missing()
        self._checked = True
        if record["attempt"] <= self._state.get("attempt", 0):
            return
        settings = {name: str(value) for name, value in settings_of(record).items()}
        restarted = record["event"] == "started" and "loss" in self._state.get("last_steps", {})
        if not self._state or restarted:
            self._create(record)
        elif self._state["status"] != "RUNNING":
            self._client.update_run(self._state["run_id"], "RUNNING")
            self._update_state(status="RUNNING")
        self._log_settings(settings, record["attempt"])
        self._update_state(attempt=record["attempt"])

    def _create(self, record: Record) -> None:
        if self._state and self._state["status"] == "RUNNING":
            self._client.set_terminated(self._state["run_id"], "KILLED")
        kind = "GPU" if record.get("device") == "cuda" else "process"
        count = record.get("world_size", 1)
        plural = "" if count == 1 else "es" if kind == "process" else "s"
        run = self._client.create_run(
            self._experiment(),
            start_time=round(record["time"] * 1000),
            run_name=f"{record['run']}, {count} {kind}{plural}",
            tags={"trainyard.run": record["run"], "trainyard.world_size": str(count)},
        )
        self._state = {}
        self._update_state(run_id=run.info.run_id, status="RUNNING", params={}, last_steps={})

    def _experiment(self) -> str:
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        if (experiment := self._client.get_experiment_by_name(name)) is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(name))

    def _log_settings(self, settings: dict[str, str], attempt: int) -> None:
        """Log the hyperparameters. MLflow params are immutable: a changed one becomes a tag."""
        from mlflow.entities import Param, RunTag

        run_id, known = self._state["run_id"], self._state["params"]
        new = [Param(name, value) for name, value in settings.items() if name not in known]
        for start in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
        changed = [
            RunTag(f"trainyard.attempt-{attempt}.{name}", value)
            for name, value in settings.items()
            if known.get(name, value) != value
        ]
        if changed:
            self._client.log_batch(run_id, tags=changed[:MAX_PARAMS])
        self._update_state(params=settings | known)

    def _log(self, records: Sequence[Record]) -> None:
        batch = []
        for metric in self._unsent(records):
            batch.append(metric)
            if len(batch) == MAX_METRICS:
                self._client.log_batch(self._state["run_id"], batch)
                batch = []
        if batch:
            self._client.log_batch(self._state["run_id"], batch)
        self._update_state()

    def _unsent(self, records: Sequence[Record]) -> Iterator[Any]:
        """Metrics whose step is beyond the last one sent."""
        from mlflow.entities import Metric

        last: dict[str, int] = self._state["last_steps"]
        for record in records:
            for name, value in metrics_of(record).items():
                if record["step"] > last.get(name, -1):
                    last[name] = record["step"]
                    yield Metric(name, value, round(record["time"] * 1000), record["step"])

    def _reset_if_missing(self) -> None:
        """Send everything again if the server does not have the MLflow run."""
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            self._client.get_run(self._state["run_id"])
        except self._error as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            self._state = {}

    def _update_state(self, **changes: Any) -> None:
        self._state |= changes
        write_text_atomic(self._path, json.dumps(self._state), durable=False)


def _short(error: Exception) -> str:
    """The cause of a failed connection, which MLflow wraps in several other errors."""
    text = type_and_message(error).removeprefix("MlflowException: ")
    _, wrapped, cause = text.partition(" failed with exception ")
    if not wrapped:
        return text[:200]
    server = urlsplit(os.environ["MLFLOW_TRACKING_URI"]).netloc.rpartition("@")[2]  # no password
    return f"{server}: {cause.rpartition(': ')[2].rstrip(QUOTES)}"
