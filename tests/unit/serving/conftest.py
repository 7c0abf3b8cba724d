"""Real parts for the serving tests: a small exported model, and servers on 127.0.0.1."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a tiny model on two cores: threads only wait

pytest.importorskip("torch", reason="the serving extra is not installed")
pytest.importorskip("transformers", reason="the serving extra is not installed")

import torch
import uvicorn
from fastapi import FastAPI
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests import patience
from tests.patience import until
from tests.unit.serving.browser import chromium as chromium
from tests.unit.serving.browser import page as page
from trainyard_api.checkpoint import MANIFEST, MODELS, Manifest, step_name
from trainyard_serving.generate.app import create_generate_app
from trainyard_serving.server import listen
from trainyard_serving.settings import GenerateSettings
from trainyard_storage.checkpoints import describe_files, manifest_bytes

ALPHABET = "\n !',.?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZé日🚂"
CONTEXT = 32
STORIES = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K"


def write_manifest(directory: Path, **changes: Any) -> None:
    """Publish `directory` as the model of a run."""
    fields: dict[str, Any] = {
        "kind": "model",
        "run": "shakespeare",
        "attempt": 1,
        "recipe": "char-gpt",
        "step": 500,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "files": describe_files(directory),
    }
    manifest = Manifest(**(fields | changes))
    (directory / MANIFEST).write_bytes(manifest_bytes(manifest))


def export_char_gpt(directory: Path, eos_token_id: int | None = None) -> None:
    """An untrained character GPT in the form a run exports: GPT-2 and a fast tokenizer."""
    tokenizer = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(["<unk>", *ALPHABET])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=CONTEXT).save_pretrained(
        directory
    )
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=80,  # padded beyond the tokenizer's, as trainers do
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        initializer_range=0.3,  # untrained, but with strong opinions
    )
    GPT2LMHeadModel(config).save_pretrained(directory)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one exported model. Tests that change it copy it first."""
    directory = tmp_path_factory.mktemp("run")
    model = directory / MODELS / step_name(500)
    model.mkdir(parents=True)
    export_char_gpt(model)
    write_manifest(model)
    return directory


@pytest.fixture(scope="session")
def stories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained model with a manifest of ours."""
    if not STORIES.is_dir():
        pytest.skip("the stories260K model is not beside this checkout (../shared/data)")
    directory = tmp_path_factory.mktemp("stories")
    for file in STORIES.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    write_manifest(directory, run="stories")
    return directory


@contextmanager
def running(app: FastAPI) -> Iterator[httpx.Client]:
    """`app` on a free port of this machine, in a thread, and a client for it."""
    sock = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=int(patience.SECONDS),  # else a pause could end it under a request
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=patience.SECONDS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def send(client: httpx.Client, path: str, body: bytes, length: int | None = None) -> socket.socket:
    """A request whose answer is left to the caller; `length` is what it claims the body has."""
    url = client.base_url
    peer = socket.create_connection((url.host, url.port or 80), timeout=patience.SECONDS)
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    length = len(body) if length is None else length
    peer.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + body)
    return peer


@contextmanager
def serving(**settings: Any) -> Iterator[httpx.Client]:
    """A text generation server; the model may still be loading."""
    values = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    with running(
        create_generate_app(GenerateSettings(**{"poll_seconds": 0.05, **values}))
    ) as client:
        yield client


@contextmanager
def loaded(**settings: Any) -> Iterator[httpx.Client]:
    """As `serving`, once the model is there."""
    with serving(**settings) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


@pytest.fixture(scope="session")
def client(run_dir: Path) -> Iterator[httpx.Client]:
    """A client of one server that the tests share."""
    with loaded(run_dir=run_dir) as client:
        yield client
