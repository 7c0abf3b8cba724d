"""Servers of the device beside those of the CPU: the same answers to the same requests."""

from collections.abc import Iterator
from typing import Any

import httpx

from tests.gpu.rows import Row, close, same
from tests.gpu.setting import Device, Setting
from tests.support.serving.classify_server import classify_server, model_of
from tests.support.serving.embed_server import embed_server, write_encoder
from tests.support.serving.news_model import WORDS, write_news_model
from tests.support.serving.servers import loaded

PROBABILITY = 1e-3  # that a class may be off
EMBEDDING = 1e-3  # that a number of an embedding of length 1 may be off
TEXTS = [" ".join(WORDS[start : start + length]) for start, length in ((0, 3), (9, 12), (40, 20))]
PROMPTS = ["def ", "import ", "    return ", "class A:\n"]


def classifying(setting: Setting) -> Iterator[Row]:
    """Probabilities of a text classifier."""
    directory = setting.folder / "news"
    write_news_model(model_of(directory, 100))

    def ask(device: Device) -> dict[str, float]:
        setting.say(f"classify on {device}")
        with classify_server(directory, device=device, engine="torch") as client:
            answers = _post(client, "/predict/batch", {"texts": TEXTS})
        return {
            f"{label} of text {number}": probability
            for number, answer in enumerate(answers, start=1)
            for label, probability in answer["probs"].items()
        }

    yield close("probabilities, beside the CPU's", ask(setting.device), ask("cpu"), PROBABILITY)


def embedding(setting: Setting) -> Iterator[Row]:
    """Embeddings of an encoder, in fp32 on both."""
    directory = setting.folder / "words"
    write_encoder(directory)

    def ask(device: Device) -> dict[str, float]:
        setting.say(f"embed on {device}")
        with embed_server(model=directory, device=device) as client:
            answers = _post(client, "/embed", {"inputs": TEXTS})
        return {
            f"number {place} of text {number}": value
            for number, answer in enumerate(answers, start=1)
            for place, value in enumerate(answer, start=1)
        }

    yield close("embeddings, beside the CPU's", ask(setting.device), ask("cpu"), EMBEDDING)


def generating(setting: Setting) -> Iterator[Row]:
    """The most probable continuations, of a model trained on the device.

    Each server has compared the model's logits with the trainer's before it answers.
    """
    run = setting.train(setting.job("a model to serve"))

    def ask(device: Device) -> dict[str, str]:
        setting.say(f"generate on {device}")
        with loaded(run_dir=run.run_dir, device=device, threads=1) as client:
            return {prompt: _complete(client, run.job.run, prompt) for prompt in PROMPTS}

    yield same("continuations, beside the CPU's", ask(setting.device), ask("cpu"))


def _post(client: httpx.Client, path: str, request: dict[str, Any]) -> Any:
    return client.post(path, json=request).raise_for_status().json()


def _complete(client: httpx.Client, run: str, prompt: str) -> str:
    request = {"model": run, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    return str(_post(client, "/v1/completions", request)["choices"][0]["text"])
