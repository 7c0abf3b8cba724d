"""`trainyard serve`: starts the serving part on a run's model, as a program of its own."""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from trainyard_operator.local.store import RunDir, UserError

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
START_SECONDS = 300
_PR_SET_PDEATHSIG = 1


def serve(run_dir: RunDir, port: int) -> int:
    """Serve the run's newest model until Ctrl-C; returns the exit status."""
    _check_model(run_dir)
    port = _check_port(port)
    with _server(run_dir, port, None) as server:
        try:
            _wait_until_ready(server, port, say=True)
            url = f"http://{HOST}:{port}"
            body = json.dumps({"prompt": "def ", "max_tokens": 64})
            print(f"{run_dir.name} answers at {url} (a page to try it; Ctrl-C ends it). Try:")
            print(f"  curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'")
            sys.stdout.flush()
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def complete(run_dir: RunDir, prompt: str, port: int | None, max_tokens: int) -> str:
    """Start a server, ask for one completion, end the server; returns prompt and completion."""
    _check_model(run_dir)
    port = _check_port(port or 0)
    with tempfile.TemporaryFile() as log, _server(run_dir, port, log) as server:
        try:
            _wait_until_ready(server, port, say=False, log=log)
            request = {"prompt": prompt, "max_tokens": max_tokens}
            status, answer = _call(port, "POST", "/v1/completions", request, timeout=120)
            if status != 200:
                raise UserError(f"the server answered {status}: {json.dumps(answer)}")
            return prompt + str(answer["choices"][0]["text"])
        finally:
            _end(server)


def _check_model(run_dir: RunDir) -> None:
    """Refuse early what the server would wait for. Raises UserError."""
    from trainyard_api.checkpoint import MODELS, newest_valid

    run = run_dir.read()
    model, _, refused = newest_valid(run_dir.data(run) / MODELS)
    if model is not None:
        return
    if refused:
        raise UserError(f"{run_dir.name} has no model that verifies: {refused[0]}")
    status = run.get("status", {})
    where = f", step {status['progress']}" if status.get("progress") else ""
    raise UserError(
        f"{run_dir.name} has no model to serve yet (phase {status.get('phase', 'Pending')}{where}):"
        " a run exports its model when it succeeds"
    )


def _check_port(port: int) -> int:
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


def _server(run_dir: RunDir, port: int, log: IO[bytes] | None) -> subprocess.Popen[bytes]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends us as Ctrl-C does
    data = run_dir.data(run_dir.read())
    command = [sys.executable, "-m", "trainyard_serving", "generate"]
    command += ["--run-dir", str(data), "--host", HOST, "--port", str(port)]
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


def _wait_until_ready(
    server: subprocess.Popen[bytes], port: int, *, say: bool, log: IO[bytes] | None = None
) -> None:
    """Return once requests are answered. Raises UserError when the server ends or gives up."""
    began = time.monotonic()
    told = ""
    while True:
        if (code := server.poll()) is not None:
            raise UserError(f"the server ended with exit status {code}{_last_line(log)}")
        status, answer = _call(port, "GET", "/ready", None, timeout=5)
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


def _call(
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


def _end(server: subprocess.Popen[bytes]) -> None:
    """Let the server finish what it answers, then insist."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=35)  # it drains for 30 s at most
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
