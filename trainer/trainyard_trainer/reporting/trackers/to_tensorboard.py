"""A run's metrics in RUN_DIR/tensorboard, for `tensorboard --logdir RUN_DIR`."""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainyard_trainer.reporting.trackers.sink import Record, Unreachable, metrics_of, settings_of

DIRECTORY = "tensorboard"


class TensorBoardSink:
    """Writes the whole history to a new event file, which begins with a session start at step 0.

    On a session start TensorBoard discards what it read from earlier files, so it always shows the
    content of metrics.jsonl: no steps that a killed attempt lost, and no step twice.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event: Any = Event
        self._summary: Any = Summary
        directory = run_dir / DIRECTORY
        directory.mkdir(exist_ok=True)
        # A running TensorBoard continues from the newest file to the next, in the order of names.
        for path in sorted(directory.glob("events.out.tfevents.*"))[:-1]:
            path.unlink(missing_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("wb")
        self._records: Any = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))
        self._num_written = 0
        self._settings_written = False

    def send(self, records: Sequence[Record]) -> None:
        try:
            for record in records[self._num_written :]:
                self._add(record)
                self._num_written += 1
            self._file.flush()
        except OSError as error:
            raise self._unreachable(error) from None
        self._num_written = 0

    def finish(self, status: str) -> None:
        from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
            api_pb2,
            metadata,
            plugin_data_pb2,
        )

        outcome = api_pb2.STATUS_SUCCESS if status == "FINISHED" else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=outcome, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        value = self._summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data),
            tensor=metadata.NULL_TENSOR,
        )
        try:
            self._write(summary=self._summary(value=[value]))
            self._file.close()
        except OSError as error:
            raise self._unreachable(error) from None

    def _add(self, record: Record) -> None:
        wall_time, step = record["time"], record["step"]
        if "config" in record and not self._settings_written:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # type: ignore[import-untyped]

            self._settings_written = True
            summary = hparams_pb(settings_of(record), trial_id=record["run"])
            self._write(wall_time=wall_time, summary=summary)
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in metrics_of(record).items()
        ]
        if values:
            summary = self._summary(value=values)
            self._write(wall_time=wall_time, step=step, summary=summary)

    def _write(self, **fields: Any) -> None:
        fields.setdefault("wall_time", time.time())
        self._records.write(self._event(**fields).SerializeToString())

    def _unreachable(self, error: OSError) -> Unreachable:
        return Unreachable(f"{self._file.name}: {error.strerror}")
