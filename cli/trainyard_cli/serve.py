"""`trainyard serve` and `trainyard dashboard`: start a model server, or the dashboard."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainyard_cli.server_process import HOST, call, check_port, start, stop, wait_until_ready
from trainyard_local.preflight import require_extra
from trainyard_local.store import RunDir, UserError

if TYPE_CHECKING:
    from trainyard_api.checkpoint import Manifest

DASHBOARD_PORT = 8050


@dataclass(frozen=True)
class App:
    """An app of `python -m trainyard_serving`, and how to use it.

    Attributes:
        port: the default port.
        engines: the first is the default.
        page: path of the page to try the model.
        route: path of a prediction.
        input_field: the request's field for the text.
        example: a text to try.
        options: more fields of the example request.
    """

    name: str
    port: int
    engines: tuple[str, ...]
    page: str
    route: str
    input_field: str
    example: str
    options: dict[str, Any] = field(default_factory=dict)


GENERATE = App(
    name="generate",
    port=8000,
    engines=("torch", "sglang"),
    page="/",
    route="/v1/completions",
    input_field="prompt",
    example="def ",
    options={"max_tokens": 64},
)
CLASSIFY = App(
    name="classify",
    port=7860,
    engines=("torch", "onnx"),
    page="/try",
    route="/predict",
    input_field="text",
    example="Shares rose after the company reported record profits.",
)
EMBED = App(
    name="embed",
    port=8000,
    engines=("torch",),
    page="/docs",
    route="/v1/embeddings",
    input_field="input",
    example="Shares rose after the company reported record profits.",
)
APPS = {app.name: app for app in (GENERATE, CLASSIFY, EMBED)}


def serve(
    run_dir: RunDir,
    port: int | None,
    engine: str | None = None,
    model: str = "last",
    app_name: str | None = None,
) -> int:
    """Serve a model of the run until Ctrl-C; returns the exit status.

    model: last or best, and later or better ones once they appear, or the number of a step.
    app_name: instead of the app that the model names.
    """
    require_extra("serving", "trainyard serve")
    app = _app(run_dir, engine, model, app_name)
    port = check_port(app.port if port is None else port)
    with _server(run_dir, app, engine, model, port, None) as server:
        try:
            wait_until_ready(server, port, verbose=True)
            url = f"http://{HOST}:{port}"
            print(f"{run_dir.name} is served at {url} (Ctrl-C stops it).")
            print(f"  web page: {url}{app.page}")
            body = shlex.quote(json.dumps({app.input_field: app.example, **app.options}))
            print(f"  curl {url}{app.route} -H 'Content-Type: application/json' -d {body}")
            sys.stdout.flush()
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop(server)


def complete(
    run_dir: RunDir,
    prompt: str,
    port: int | None,
    max_tokens: int,
    engine: str | None = None,
    model: str = "last",
    app_name: str | None = None,
) -> str:
    """Send one request to a new server.

    Returns the prompt with its completion, its class, or the beginning of its embedding.
    """
    require_extra("serving", "trainyard serve")
    app = _app(run_dir, engine, model, app_name)
    port = check_port(port or 0)
    with tempfile.TemporaryFile() as log, _server(run_dir, app, engine, model, port, log) as server:
        try:
            wait_until_ready(server, port, verbose=False, log=log)
            request: dict[str, Any] = {app.input_field: prompt}
            if app is GENERATE:
                request["max_tokens"] = max_tokens
            status, answer = call(port, "POST", app.route, request, timeout=120)
            if status != 200:
                raise UserError(f"the server responded with status {status}: {json.dumps(answer)}")
            if app is CLASSIFY:
                return f"{answer['label']} ({answer['confidence']:.1%})"
            if app is EMBED:
                embedding = answer["data"][0]["embedding"]
                numbers = ", ".join(f"{number:.4f}" for number in embedding[:4])
                return f"{len(embedding)} dimensions: {numbers}, ..."
            return prompt + str(answer["choices"][0]["text"])
        finally:
            stop(server)


def dashboard(port: int | None, flags: list[str], open_browser: bool) -> int:
    """Serve the dashboard until Ctrl-C; returns the exit status. Raises UserError."""
    require_extra("serving", "trainyard dashboard")
    port = check_port(DASHBOARD_PORT if port is None else port)
    with start(["trainyard_dashboard"], port, flags) as server:
        try:
            wait_until_ready(server, port, verbose=False)
            url = f"http://{HOST}:{port}"
            print(f"The dashboard is at {url} (Ctrl-C stops it).", flush=True)
            if open_browser and _has_screen():
                webbrowser.open(url)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop(server)


def choose_model(run_dir: RunDir, model: str) -> tuple[Path, "Manifest"]:
    """The directory of this model of the run, and its manifest, which verifies.

    model: last, best or the number of a step. Raises UserError if there is none.
    """
    from trainyard_api.checkpoint import MODELS, step_of
    from trainyard_storage.checkpoints import best_first, first_valid, steps

    run = run_dir.read()
    models = list(steps(run_dir.data(run) / MODELS))
    chosen = models
    if model == "best":
        chosen = [directory for _, directory in best_first(run_dir.data(run) / MODELS)]
    elif model.isdecimal():
        chosen = [directory for directory in models if step_of(directory) == int(model)]
    elif model != "last":
        raise UserError(f"--model {model}: use last, best or the number of a step")
    if models and not chosen:
        there = ", ".join(str(step_of(directory)) for directory in models)
        lacks = "an evaluation loss" if model == "best" else f"the step {model}"
        raise UserError(
            f"{run_dir.name}: no model has {lacks}; use --model last, or one of the steps {there}"
        )
    directory, manifest, refused = first_valid(chosen)
    if manifest is None or directory is None:
        if refused:
            raise UserError(f"{run_dir.name} has no valid model: {refused[0]}")
        status = run.get("status", {})
        where = f", step {status['progress']}" if status.get("progress") else ""
        phase = f"phase {status.get('phase', 'Pending')}{where}"
        raise UserError(
            f"{run_dir.name} has no model yet ({phase}): a run exports its model when it succeeds"
        )
    return directory, manifest


def _app(run_dir: RunDir, engine: str | None, model: str, app_name: str | None) -> App:
    """The app for this model of the run. Raises UserError if there is none that can be served."""
    if app_name not in (None, *APPS):
        raise UserError(f"--app {app_name}: use {', '.join(APPS)}")
    directory, manifest = choose_model(run_dir, model)
    app = APPS[app_name] if app_name else app_of_model(directory)
    if app is None:
        whose = f"recipe {manifest.recipe}" if manifest.recipe else "this script"
        named = f"app {manifest.serving}" if manifest.serving else "no app"
        raise UserError(
            f"{run_dir.name}: models of {whose} can't be served: their manifest names {named}"
            f" (apps: {', '.join(APPS)}), and config.json no ...ForCausalLM, ...LMHeadModel,"
            " ...ForSequenceClassification, nor, of a model that is not an encoder with a decoder,"
            " ...ForMaskedLM, ...ForPreTraining or ...Model"
        )
    if engine not in (None, *app.engines):
        raise UserError(
            f"{run_dir.name}: app {app.name} has no engine {engine}:"
            f" use --engine {' or '.join(app.engines)}"
        )
    return app


def app_of_model(directory: Path) -> App | None:
    """The app for a model: the one its recipe names in the manifest, else by its files.

    A script names none, nor did recipes of older versions.
    """
    from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest

    with contextlib.suppress(InvalidCheckpointError):
        serving = read_manifest(directory).serving
        if serving is not None:
            return APPS.get(serving)
    try:
        config = json.loads((directory / "config.json").read_bytes())
        names = " ".join(map(str, config.get("architectures") or []))
        # T5EncoderModel is half of one: no app loads it, either.
        has_decoder = config.get("is_encoder_decoder") or names.endswith("EncoderModel")
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    if "ForSequenceClassification" in names:
        return CLASSIFY
    if has_decoder:
        return None
    if (directory / "modules.json").exists() or (directory / "1_Pooling").exists():
        return EMBED  # as Sentence Transformers saves them, whatever the model's class
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return GENERATE
    reads_text = (directory / "tokenizer_config.json").exists()
    encodes = names.endswith(("ForMaskedLM", "ForPreTraining", "Model"))
    return EMBED if reads_text and encodes else None


def _server(
    run_dir: RunDir, app: App, engine: str | None, model: str, port: int, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    flags = ["--run-dir", str(run_dir.data(run_dir.read())), "--step", model]
    if engine:
        flags += ["--engine", engine]
    return start(["trainyard_serving", app.name], port, flags, log)


def _has_screen() -> bool:
    """Without a screen, `webbrowser` would start a text browser in this terminal."""
    return sys.platform == "darwin" or any(
        os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY")
    )
