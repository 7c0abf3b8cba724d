"""`trainyard serve`: starts the serving part on a run's model, as a program of its own."""

import json
import shlex
import subprocess
import sys
import tempfile
from typing import IO, Any

from trainyard_cli.serving_apps import BY_RECIPE, CLASSIFY, App
from trainyard_cli.serving_process import (
    HOST,
    call,
    check_port,
    end,
    start,
    wait_until_ready,
)
from trainyard_local.store import RunDir, UserError


def serve(run_dir: RunDir, port: int | None, engine: str | None = None) -> int:
    """Serve the run's newest model, and newer ones, until Ctrl-C; returns the exit status."""
    app = _app(run_dir, engine)
    port = check_port(app.port if port is None else port)
    with _server(run_dir, app, engine, port, None) as server:
        try:
            wait_until_ready(server, port, say=True)
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
            end(server)


def complete(
    run_dir: RunDir, prompt: str, port: int | None, max_tokens: int, engine: str | None = None
) -> str:
    """Start a server, ask it once, end it; returns the prompt with its completion, or its class."""
    app = _app(run_dir, engine)
    port = check_port(port or 0)
    with tempfile.TemporaryFile() as log, _server(run_dir, app, engine, port, log) as server:
        try:
            wait_until_ready(server, port, say=False, log=log)
            request: dict[str, Any] = {app.field: prompt}
            if app is not CLASSIFY:
                request["max_tokens"] = max_tokens
            status, answer = call(port, "POST", app.route, request, timeout=120)
            if status != 200:
                raise UserError(f"the server answered {status}: {json.dumps(answer)}")
            if app is CLASSIFY:
                return f"{answer['label']} ({answer['confidence']:.1%})"
            return prompt + str(answer["choices"][0]["text"])
        finally:
            end(server)


def _app(run_dir: RunDir, engine: str | None) -> App:
    """The app for the run's newest model; refuses early what the server would wait for.

    Raises UserError.
    """
    from trainyard_api.checkpoint import MODELS
    from trainyard_storage.checkpoints import newest_valid

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


def _server(
    run_dir: RunDir, app: App, engine: str | None, port: int, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    flags = ["--run-dir", str(run_dir.data(run_dir.read()))]
    if engine:
        flags += ["--engine", engine]
    return start(["trainyard_serving", app.name], port, flags, log)
