"""Rank 0's report: /progress and /metrics over HTTP, in a background thread."""

import contextlib
import os
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trainyard_api.job import RESULT_FILE_ENV, TrainerJob
from trainyard_api.progress import REPORT_PORT, ProgressReport
from trainyard_trainer.reporting.metrics import TrainerMetrics

MAX_RESULT_BYTES = 4096  # Kubernetes' limit of a termination message


class ReportServer:
    """Holds and serves the newest state of the run.

    An update replaces the whole state, so readers see a consistent one without a lock.
    """

    def __init__(self, job: TrainerJob, world_size: int) -> None:
        self._state: dict[str, Any] = {
            "run": job.run,
            "attempt": job.attempt,
            "phase": "joining",
            "ranks_joined": 0,
            "world_size": world_size,
        }
        self.metrics = TrainerMetrics(job)
        self._server: ThreadingHTTPServer | None = None

    def update(self, **values: Any) -> None:
        """Set fields of the ProgressReport."""
        self._state = self._state | values

    def report(self) -> ProgressReport:
        """The current state."""
        return ProgressReport(**self._state, time=datetime.now(UTC))

    def serve(self, port: int) -> None:
        """Start to serve /progress and /metrics; a port in use causes a warning, not a failure."""
        # In a pod without an agent the operator and Prometheus connect from outside.
        outside = "KUBERNETES_SERVICE_HOST" in os.environ and port == REPORT_PORT
        host = "" if outside else "127.0.0.1"
        try:
            http_server = ThreadingHTTPServer((host, port), _handler(self))
        except OSError as error:
            print(
                f"warning: port {port}: {error.strerror}; training continues without /progress and"
                " /metrics",
                file=sys.stderr,
                flush=True,
            )
            return
        http_server.daemon_threads = True
        self._server = http_server
        threading.Thread(target=http_server.serve_forever, name="report", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def write_result(self) -> None:
        """Write the final report to the file that the launcher reads."""
        path = os.environ.get(RESULT_FILE_ENV)
        if not path:
            return
        try:
            # Written in place: it may be the pod's termination message, a mounted file.
            Path(path).write_bytes(result_bytes(self.report()))
        except OSError as error:
            print(f"warning: {path}: {error.strerror}", file=sys.stderr, flush=True)


def result_bytes(report: ProgressReport) -> bytes:
    """The report as JSON of at most MAX_RESULT_BYTES; free text is truncated to fit."""
    for length in (2000, 500, 0):
        shorter = report.model_copy(
            update={
                "sample": report.sample[:length] if report.sample else None,
                "message": report.message[: max(length, 200)],
            }
        )
        text = shorter.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(text) < MAX_RESULT_BYTES:
            break
    return text


def _handler(server: ReportServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # an idle client must not hold its thread for ever

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has closed its connection
                super().handle()

        def do_GET(self) -> None:
            if self.path == "/progress":
                text = server.report().model_dump_json(by_alias=True, exclude_none=True)
                self._answer(200, text.encode(), "application/json")
            elif self.path == "/metrics":
                content_type = "text/plain; version=0.0.4; charset=utf-8"
                self._answer(200, server.metrics.text(), content_type)
            else:
                self._answer(404, b"try /progress or /metrics\n", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    return Handler
