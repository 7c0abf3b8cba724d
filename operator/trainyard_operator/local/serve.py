"""`trainyard serve`: starts the serving part on a run's model, as a program of its own."""

import contextlib
import ctypes
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

from trainyard_operator.local.serving_apps import BY_RECIPE, CLASSIFY, App
from trainyard_operator.local.store import RunDir, UserError

HOST = "127.0.0.1"
START_SECONDS = 300
_PR_SET_PDEATHSIG = 1


def serve(run_dir: RunDir, port: int | None, engine: str | None = None) -> int:
    """Serve the run's newest model, and newer ones, until Ctrl-C; returns the exit status."""
    app = _app(run_dir, engine)
    port = _check_port(app.port if port is None else port)
    with _server(run_dir, app, engine, port, None) as server:
        try:
            _wait_until_ready(server, port, say=True)
            url = f"http://{HOST}:{port}"
            print(f"{run_dir.name} answers at {url} (Ctrl-C ends it).")
            print(f"  a page to try it: {url}{app.page}")
            body = shlex.quote(json.dumps({app.field: app.example, **app.more}))
            print(f"  curl {url}{app.route} -H 'Content-Type: application/json' -d {body}")
            sys.stdout.flush()
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def complete(
    run_dir: RunDir, prompt: str, port: int | None, max_tokens: int, engine: str | None = None
) -> str:
    """Start a server, ask it once, end it; returns the prompt with its completion, or its class."""
    app = _app(run_dir, engine)
    port = _check_port(port or 0)
    with tempfile.TemporaryFile() as log, _server(run_dir, app, engine, port, log) as server:
        try:
            _wait_until_ready(server, port, say=False, log=log)
            request: dict[str, Any] = {app.field: prompt}
            if app is not CLASSIFY:
                request["max_tokens"] = max_tokens
            status, answer = _call(port, "POST", app.route, request, timeout=120)
            if status != 200:
                raise UserError(f"the server answered {status}: {json.dumps(answer)}")
            if app is CLASSIFY:
                return f"{answer['label']} ({answer['confidence']:.1%})"
            return prompt + str(answer["choices"][0]["text"])
        finally:
            _end(server)


def _app(run_dir: RunDir, engine: str | None) -> App:
    """The app for the run's newest model; refuses early what the server would wait for.

    Raises UserError.
    """
    from trainyard_api.checkpoint import MODELS, newest_valid

    run = run_dir.read()
    _, manifest, refused = newest_valid(run_dir.data(run) / MODELS)
    if manifest is None:
        if refused:
            raise UserError(f"{run_dir.name} has no model that verifies: {refused[0]}")
        status = run.get("status", {})
        where = f", step {status['progress']}" if status.get("progress") else ""
        phase = f"phase {status.get('phase', 'Pending')}{where}"
        raise UserError(
            f"{run_dir.name} has no model to serve yet ({phase}):"
            " a run exports its model when it succeeds"
        )
    app = BY_RECIPE.get(manifest.recipe)
    if app is None:
        raise UserError(
            f"{run_dir.name} is of recipe {manifest.recipe}, whose models no server answers from"
            f" (of these there is one: {', '.join(BY_RECIPE)})"
        )
    if engine not in (None, *app.engines):
        raise UserError(
            f"{run_dir.name}: app {app.name} has no engine {engine}:"
            f" give --engine {' or '.join(app.engines)}"
        )
    return app


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


def _server(
    run_dir: RunDir, app: App, engine: str | None, port: int, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends us as Ctrl-C does
    data = run_dir.data(run_dir.read())
    command = [sys.executable, "-m", "trainyard_serving", app.name]
    command += ["--run-dir", str(data), "--host", HOST, "--port", str(port)]
    command += ["--engine", engine] if engine else []
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
