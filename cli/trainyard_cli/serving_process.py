"""Programs of the serving part, started as processes of their own on this machine."""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import IO, Any

from trainyard_local.store import UserError

HOST = "127.0.0.1"
START_SECONDS = 300
_PR_SET_PDEATHSIG = 1


def check_port(port: int) -> int:
    """The port, or a free one for 0. Raises UserError when somebody listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} can't be used ({error.strerror}): give another with --port"
            ) from None
        return int(probe.getsockname()[1])


def start(
    program: list[str], port: int, flags: list[str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m PROGRAM`, a server that ends when this command does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends us as Ctrl-C does
    command = [sys.executable, "-m", *program, *flags]
    command += ["--host", HOST, "--port", str(port)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if log is None else log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is ours to pass on
        preexec_fn=_end_with_parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _end_with_parent() -> None:
    """Have Linux end the server should this command be killed without a chance to do so."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_until_ready(
    server: subprocess.Popen[bytes], port: int, *, say: bool, log: IO[bytes] | None = None
) -> None:
    """Return once requests are answered. Raises UserError when the server ends or gives up."""
    began = time.monotonic()
    told = ""
    while True:
        if (code := server.poll()) is not None:
            raise UserError(f"the server ended with exit status {code}{_last_line(log)}")
        status, answer = call(port, "GET", "/ready", None, timeout=5)
        if status == 200:
            return
        reason = str(answer.get("reason", "")) or "the server is starting"
        waited = time.monotonic() - began
        if say and reason != told:
            print(f"waiting: {reason}", flush=True)
            told = reason
        if waited > START_SECONDS:
            raise UserError(f"not ready after {START_SECONDS} s: {reason}")
        time.sleep(0.1)


def call(
    port: int, method: str, path: str, body: dict[str, Any] | None, timeout: float
) -> tuple[int, dict[str, Any]]:
    """(status, JSON body); status 0 while nobody answers. Never through a proxy."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    except (OSError, http.client.HTTPException, ValueError):
        return 0, {}
    finally:
        connection.close()


def _last_line(log: IO[bytes] | None) -> str:
    if log is None:
        return " (see above)"
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def end(server: subprocess.Popen[bytes]) -> None:
    """Let the server finish what it answers, then insist."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=35)  # it drains for 30 s at most
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
