"""A run's metrics in RUN_DIR/tensorboard, for `tensorboard --logdir RUN_DIR`."""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainyard_trainer.forward import Record, Unreachable, metrics_of, settings_of

DIRECTORY = "tensorboard"


class TensorBoardSink:
    """Writes one event file, anew for each attempt: it then shows what metrics.jsonl holds.

    So nothing that a killed attempt lost is left, and no step is there twice. A TensorBoard that
    looks on sees the new file begin with a restart at step 0 and drops what it had.
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
        old = list(directory.glob("events.out.tfevents.*"))
        # Files are read in the order of their names.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (directory / name).open("wb")
        self._records: Any = RecordWriter(self._file)
        for path in old:
            path.unlink(missing_ok=True)
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))
        self._taken = 0
        self._settings_shown = False

    def send(self, records: Sequence[Record]) -> None:
        try:
            for record in records[self._taken :]:
                self._add(record)
                self._taken += 1
            self._file.flush()
        except OSError as error:
            raise Unreachable(f"{self._file.name}: {error.strerror}") from None
        self._taken = 0

    def finish(self, status: str) -> None:
        from tensorboard.plugins.hparams import api_pb2, summary  # type: ignore[import-untyped]

        outcome = api_pb2.STATUS_SUCCESS if status == "FINISHED" else api_pb2.STATUS_FAILURE
        self._write(summary=summary.session_end_pb(outcome))
        self._file.close()

    def _add(self, record: Record) -> None:
        wall_time, step = record["time"], record["step"]
        if "config" in record and not self._settings_shown:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # type: ignore[import-untyped]

            self._settings_shown = True
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
