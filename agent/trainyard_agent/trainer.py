"""Passes on the report that a recipe's rank 0 serves on loopback."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any

TIMEOUT_SECONDS = 0.8  # the operator waits 2 s, `trainyard run` 1 s
MAX_ANSWER = 4 * 1024 * 1024


class TrainerReport:
    """As report.Report, from a trainer's own server."""

    def __init__(self, run: str, port: int) -> None:
        self.run = run
        self._port = port
        self._usage: dict[str, Any] | None = None

    def saw_usage(self, usage: dict[str, Any], peak: int) -> None:
        """What the ranks of all nodes use now. The trainer knows its peak itself."""
        self._usage = usage

    def document(self) -> dict[str, Any] | None:
        """Its ProgressReport; None before it serves one. Raises OSError if it doesn't answer."""
        body = self._get("/progress")
        try:
            document = json.loads(body) if body else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        return {**document, "usage": self._usage} if self._usage else document

    def metrics(self) -> str:
        """Its series; empty if it doesn't answer."""
        try:
            return self._get("/metrics").decode(errors="replace")
        except OSError:
            return ""

    def update(self, body: Any, world_size: int) -> None:
        """Raises ValueError: a trainer posts nothing."""
        raise ValueError("a recipe's trainer serves its own report")

    def _get(self, path: str) -> bytes:
        """The body of its answer; empty where nothing listens. Raises OSError if none comes."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)  # never through a proxy
            answer = connection.getresponse()
            return answer.read(MAX_ANSWER) if answer.status == 200 else b""
        except (ConnectionRefusedError, HTTPException):
            return b""
        finally:
            connection.close()
