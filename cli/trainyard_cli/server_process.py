"""Servers (trainyard_serving, trainyard_dashboard) as child processes on this machine."""

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
    """The port, or a free one for 0. Raises UserError if it can't be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} can't be used ({error.strerror}): choose another with --port"
            ) from None
        return int(probe.getsockname()[1])


def start(
    program: list[str], port: int, flags: list[str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m PROGRAM`, a server that exits when this command does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # treated like Ctrl-C
    command = [sys.executable, "-m", *program, *flags]
    command += ["--host", HOST, "--port", str(port)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if log is None else log,
        stderr=log,
        start_new_session=True,  # this process handles Ctrl-C
        preexec_fn=_exit_with_parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _exit_with_parent() -> None:
    """Have Linux stop the server if this command is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_until_ready(
    server: subprocess.Popen[bytes], port: int, *, verbose: bool, log: IO[bytes] | None = None
) -> None:
    """Return once the server is ready. Raises UserError if it exits, or is not ready in time."""
    started = time.monotonic()
    printed = ""
    while True:
        if (code := server.poll()) is not None:
            raise UserError(f"the server exited with status {code}{_last_line(log)}")
        status, answer = call(port, "GET", "/ready", None, timeout=5)
        if status == 200:
            return
        reason = str(answer.get("reason", "")) or "the server is starting"
        waited = time.monotonic() - started
        if verbose and reason != printed:
            print(f"waiting: {reason}", flush=True)
            printed = reason
        if waited > START_SECONDS:
            raise UserError(f"not ready after {START_SECONDS} s: {reason}")
        time.sleep(0.1)


def call(
    port: int, method: str, path: str, body: dict[str, Any] | None, timeout: float
) -> tuple[int, dict[str, Any]]:
    """(status, JSON body); status 0 while nothing answers. Never through a proxy."""
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


def stop(server: subprocess.Popen[bytes]) -> None:
    """Let the server finish open requests, then kill it."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=35)  # it drains for up to 30 s
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
