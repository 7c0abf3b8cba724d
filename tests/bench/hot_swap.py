"""Swaps of the model under load: failed requests, refused models, and what swapping costs.

    OMP_NUM_THREADS=1 python -m tests.bench.hot_swap [generate classify] [--swaps 20] [--clients 8]

A server with --require follows a run into which intact models and others (a flipped byte, a cut
file, NaN weights, a wrong golden request, a worse evaluation) are published in turn, while clients
ask without a pause. Every answer is checked against the model that its x-trainyard-digest header
names.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.bench.serving_process import export_tiny, serving
from tests.support.serving.completions import text_of, write
from tests.support.serving.news_model import LABELS, write_news_model
from tests.support.serving.swap_load import REQUIRE, swap_under_load
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain

TEXT = {"prompt": "to be", "max_tokens": 8, "temperature": 0}
NEWS = {"text": "word1 word2 word3"}
Models = list[tuple[Path, str]]


@dataclass(frozen=True)
class Subject:
    """What is swapped: how to make, ask and distinguish two models that answer differently."""

    make: Callable[[Path], Models]
    route: str
    body: dict[str, Any]
    tell: Callable[[httpx.Response], str]

    async def ask(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(self.route, json=self.body)


def language_models(folder: Path) -> Models:
    """With what each answers to TEXT."""
    greedy: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    made = []
    for seed in (1, 2):
        directory = export_tiny(folder / str(seed), seed, n_layer=2, n_embd=64)
        model = LanguageModel.load(describe_plain(directory), "cpu")
        made.append((directory, text_of(write(model, model.encode("to be"), **greedy))))
    return made


def classifiers(folder: Path) -> Models:
    """With the class each finds for NEWS."""
    made: dict[str, Path] = {}
    seed = 0
    while len(made) < 2:
        directory = folder / str(seed)
        write_news_model(directory, seed)
        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        model: Any = AutoModelForSequenceClassification.from_pretrained(directory)
        logits = model(**tokenizer(NEWS["text"], return_tensors="pt")).logits
        made.setdefault(LABELS[int(logits.argmax())], directory)
        seed += 1
    return [(directory, label) for label, directory in made.items()]


SUBJECTS = {
    "generate": Subject(
        language_models,
        "/v1/completions",
        TEXT,
        lambda response: str(response.json()["choices"][0]["text"]),
    ),
    "classify": Subject(
        classifiers, "/predict", NEWS, lambda response: str(response.json()["label"])
    ),
}


def measure(app: str, num_swaps: int, num_clients: int) -> None:
    """Swap, and print what the clients saw."""
    subject = SUBJECTS[app]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        models = subject.make(Path(folder))
        assert models[0][1] != models[1][1]
        with serving(
            app, f"--run-dir={run}", "--poll-seconds=0.1", f"--require={REQUIRE}"
        ) as server:
            began = time.monotonic()
            swaps = asyncio.run(
                swap_under_load(
                    server.url, run, models, subject.ask, subject.tell, num_swaps, num_clients
                )
            )
            took = time.monotonic() - began
    answers = swaps.answers
    print(
        f"{app}: {num_swaps} models published in {took:.1f} s,"
        f" {len(swaps.damaged)} of them damaged or worse than required;"
        f" {answers.total():,} requests by {num_clients} clients ({answers.total() / took:.0f}/s)"
    )
    print(f"  failed requests: {len(swaps.failed)}")
    print(f"  of these refused: {swaps.refused} of {len(swaps.damaged)}")
    print(f"  answers by one of these: {sum(answers[name] for name in swaps.damaged)}")
    print(f"  answers under another model's digest: {len(swaps.wrong)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("apps", nargs="*", default=list(SUBJECTS), metavar="APP")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    for app in args.apps:
        measure(app, args.swaps, args.clients)


if __name__ == "__main__":
    main()
