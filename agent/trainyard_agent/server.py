"""Serves a worker's report and its ranks over HTTP, and accepts its script's status updates."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

from trainyard_agent.hangs import RankState, to_wire
from trainyard_agent.report import Report
from trainyard_agent.trainer import TrainerReport
from trainyard_agent.usage import RankUsage, exposition

STATUS_PATH = "/status"
MAX_BODY = 64 * 1024


class ReportServer:
    """GET /progress and /metrics for the operator and Prometheus; POST /status for the script.

    GET /ranks is for the agent of node 0, which looks for hangs and sums up what ranks use.
    """

    def __init__(
        self,
        report: Report | TrainerReport,
        world_size: Callable[[], int],
        ranks: Callable[[], list[RankState]] = list,
        usages: Callable[[], list[RankUsage]] = list,
    ) -> None:
        """`world_size`: ranks of the gang, as far as known; the others are about this node's."""
        self.report = report
        self.world_size = world_size
        self.ranks = ranks
        self.usages = usages
        self.token = secrets.token_urlsafe(32)
        self._server: ThreadingHTTPServer | None = None

    def serve(self, host: str, port: int) -> None:
        """Start; a port in use causes a warning, not a failure."""
        try:
            server = ThreadingHTTPServer((host, port), _handler(self))
        except OSError as error:
            print(
                f"warning: port {port}: {error.strerror}; the run continues without progress",
                file=sys.stderr,
                flush=True,
            )
            return
        server.daemon_threads = True
        self._server = server
        threading.Thread(target=server.serve_forever, name="report", daemon=True).start()

    def close(self) -> None:
        """Stop, so that the port is free for the next attempt."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def port(self) -> int:
        """The port that it listens on; 0: none."""
        return int(self._server.server_address[1]) if self._server else 0

    def write_result(self) -> None:
        """Leave the last report where the trainer leaves its own, unless the script left one."""
        path = os.environ.get("TRAINYARD_RESULT_FILE")
        if isinstance(self.report, TrainerReport) or not path:
            return
        document = self.report.document()
        if document is None:
            return
        text = json.dumps({**document, "phase": "finished", "hang": ""})
        try:
            with open(path, "a") as file:
                if file.tell() == 0:
                    file.write(text)
        except OSError as error:
            print(f"warning: {path}: {error.strerror}", file=sys.stderr, flush=True)

    def variables(self, directory: Path) -> dict[str, str]:
        """The environment variables a script needs to post its status; the token is in a file.

        NO_PROXY keeps the status from being sent to a proxy.
        """
        if self._server is None or isinstance(self.report, TrainerReport):
            return {}
        file = directory / "status-token"
        file.touch(mode=0o600)
        file.write_text(self.token)
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = f"{direct},127.0.0.1" if direct else "127.0.0.1"
        return {
            "KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{self.port}{STATUS_PATH}",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(file),
            "NO_PROXY": direct,
            "no_proxy": direct,
        }


def _handler(server: ReportServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # an idle client must not hold its thread for ever

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has closed its connection
                super().handle()

        def do_GET(self) -> None:
            if self.path == "/ranks":
                ranks = [to_wire(rank) for rank in server.ranks()]
                usages = [usage.to_wire() for usage in server.usages()]
                answer = {"ranks": ranks, "usages": usages}
                self._answer(200, json.dumps(answer), "application/json")
            elif self.path == "/progress":
                try:
                    document = server.report.document()
                except OSError:
                    self._answer(504, "rank 0 does not answer")
                    return
                if document is None:
                    self._answer(404, "nothing has been reported yet")
                else:
                    self._answer(200, json.dumps(document), "application/json")
            elif self.path == "/metrics":
                text = "text/plain; version=0.0.4; charset=utf-8"
                usage = exposition(server.report.run, server.usages())
                self._answer(200, server.report.metrics() + usage, text)
            else:
                self._answer(404, "try /progress, /metrics or /ranks")

        def do_POST(self) -> None:
            if self.path != STATUS_PATH:
                self._answer(404, f"try {STATUS_PATH}")
                return
            given = self.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {server.token}".encode()):
                self._answer(401, "wrong token")
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdigit():
                self._answer(411, "Content-Length is missing")
                return
            if int(length) > MAX_BODY:
                self._answer(413, f"a status has at most {MAX_BODY} bytes")
                return
            try:
                body: Any = json.loads(self.rfile.read(int(length)))
                server.report.update(body, server.world_size())
            except (ValueError, RecursionError) as error:
                self._answer(422, f"not a runtime status: {error}")
            else:
                self._answer(200, "{}", "application/json")

        def _answer(self, status: int, body: str, content_type: str = "text/plain") -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    return Handler
