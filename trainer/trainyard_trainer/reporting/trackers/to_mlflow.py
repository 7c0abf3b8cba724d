"""A run's metrics in MLflow, one MLflow run for all attempts that go on from one another."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainyard_storage.files import write_text_atomic
from trainyard_trainer.errors import one_line
from trainyard_trainer.reporting.trackers.sink import Record, Unreachable, metrics_of, settings_of

STATE_FILE = "mlflow.json"
# MLflow's limits of one request.
MAX_METRICS = 1000
MAX_PARAMS = 100
# Here a server that doesn't answer is asked again later, not for minutes.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
QUOTES = "\"')>"


class MLflowSink:
    """Sends to the server of MLFLOW_TRACKING_URI.

    MLflow keeps every value it ever gets, so a metric's steps only go up: what a resumed attempt
    computes again, it has already, and resume is exact. RUN_DIR/mlflow.json remembers the MLflow
    run and each metric's last step.
    """

    name = "mlflow"

    def __init__(self, run_dir: Path) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        import logging

        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would report every retry
        self._path = run_dir / STATE_FILE
        self._client = MlflowClient()
        self._error = MlflowException
        self._known = False  # whether the server has been asked for the run
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
        self._keep(status=status)

    def _begin(self, record: Record) -> None:
        """An attempt begins: with a new MLflow run, or with the one it goes on with."""
        if not self._known and self._state:
            self._forget_if_gone()
        self._known = True
        if record["attempt"] <= self._state.get("attempt", 0):
            return
        settings = {name: str(value) for name, value in settings_of(record).items()}
        anew = record["event"] == "started" and "loss" in self._state.get("last_steps", {})
        if not self._state or anew:
            self._create(record)
        elif self._state["status"] != "RUNNING":
            self._client.update_run(self._state["run_id"], "RUNNING")
            self._keep(status="RUNNING")
        self._set(settings, record["attempt"])
        self._keep(attempt=record["attempt"])

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
        self._keep(run_id=run.info.run_id, status="RUNNING", params={}, last_steps={})

    def _experiment(self) -> str:
        if found := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return found
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        if (experiment := self._client.get_experiment_by_name(name)) is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(name))

    def _set(self, settings: dict[str, str], attempt: int) -> None:
        """Log the hyperparameters. MLflow's can't be changed: a change becomes a tag."""
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
        self._keep(params=settings | known)

    def _log(self, records: Sequence[Record]) -> None:
        batch = []
        for metric in self._unsent(records):
            batch.append(metric)
            if len(batch) == MAX_METRICS:
                self._client.log_batch(self._state["run_id"], batch)
                batch = []
        if batch:
            self._client.log_batch(self._state["run_id"], batch)
        self._keep()

    def _unsent(self, records: Sequence[Record]) -> Iterator[Any]:
        """Metrics of steps beyond each one's last."""
        from mlflow.entities import Metric

        last: dict[str, int] = self._state["last_steps"]
        for record in records:
            for name, value in metrics_of(record).items():
                if record["step"] > last.get(name, -1):
                    last[name] = record["step"]
                    yield Metric(name, value, round(record["time"] * 1000), record["step"])

    def _forget_if_gone(self) -> None:
        """A server without the run is another one, or was emptied: it gets everything anew."""
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            self._client.get_run(self._state["run_id"])
        except self._error as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            self._state = {}

    def _keep(self, **changes: Any) -> None:
        self._state |= changes
        write_text_atomic(self._path, json.dumps(self._state), durable=False)


def _short(error: Exception) -> str:
    """The cause in a few words: MLflow wraps that of a failed connection in several others."""
    text = one_line(error).removeprefix("MlflowException: ")
    _, wrapped, cause = text.partition(" failed with exception ")
    if not wrapped:
        return text[:200]
    server = urlsplit(os.environ["MLFLOW_TRACKING_URI"]).netloc.rpartition("@")[2]  # no password
    return f"{server}: {cause.rpartition(': ')[2].rstrip(QUOTES)}"
