"""Sends what rank 0 reports to the agent, in a thread of its own."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

INTERVAL_SECONDS = 1.0  # between two reports; the newest values are sent
TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 2.0  # for the last report, when the process ends
MAX_SAMPLE = 2000  # characters


class Reporter:
    """Keeps the newest values, and posts them to the agent when they have changed."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        self._documents: dict[str, Any] = {}
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._warned = False
        self._pid = os.getpid()
        # The agent is on this machine: never through a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._thread = threading.Thread(target=self._send_changes, name="trainyard", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls) -> Reporter | None:
        """To this worker's agent; None where there is none."""
        url = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL")
        file = os.environ.get("KUBEFLOW_TRAINER_SERVER_TOKEN")
        if not url or not file:
            return None
        try:
            return cls(url, Path(file).read_text())
        except OSError:
            return None

    def put(
        self,
        values: dict[str, Any],
        sample: str | None = None,
        documents: dict[str, Any] | None = None,
    ) -> None:
        """Values to send next, in place of those not sent yet.

        documents: what is not a number, by its name in the status: checkpoint (step, digest, time),
            model and bestModel (step, digest, path, evalLoss), resumedFromStep, startedFrom.
        """
        kept = {name: _snapshot(value) for name, value in values.items()}
        with self._lock:
            self._values.update(kept)
            self._documents.update(documents or {})
            if sample is not None:
                self._documents["sample"] = sample[:MAX_SAMPLE]
        if not self._changed.is_set():  # which costs less, and is called after every step
            self._changed.set()

    def close(self) -> None:
        """Send what is left, within CLOSE_SECONDS."""
        if os.getpid() != self._pid:
            return  # a child process
        self._closing.set()
        self._changed.set()
        self._thread.join(CLOSE_SECONDS)

    def _send_changes(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            self._send()
            self._closing.wait(INTERVAL_SECONDS)
        if self._changed.is_set():
            self._send()

    def _send(self) -> None:
        with self._lock:
            values, self._values = self._values, {}
            documents, self._documents = self._documents, {}
        metrics = [
            {"name": name, "value": repr(number)}
            for name, value in values.items()
            if (number := finite(value)) is not None
        ]
        body: dict[str, Any] = {"trainerStatus": {"metrics": metrics}, **documents}
        if not metrics and not documents:
            return
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            self._opener.open(request, timeout=TIMEOUT_SECONDS).close()
        except OSError as error:
            if not self._warned:  # training matters more
                print(f"warning: trainyard: not reported: {error}", file=sys.stderr, flush=True)
            self._warned = True


def _snapshot(value: Any) -> Any:
    """The value as it is now, without waiting for a GPU.

    A tensor on a GPU is copied, and the other thread turns the copy into a number.
    """
    if type(value) is int or type(value) is float:
        return value
    try:
        if getattr(value, "is_cpu", True) is False:
            return value.detach().clone()
    except Exception:  # a report never fails
        return None
    return finite(value)


def finite(value: Any) -> float | None:
    """As a finite number; None for anything else."""
    try:
        number = float(value.detach() if hasattr(value, "detach") else value)
    except Exception:  # of whatever kind a script's own type raises
        return None
    return number if math.isfinite(number) else None
