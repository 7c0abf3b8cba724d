"""Compares the classify app with plain FastAPI, LitServe and mosec: capacity, p99, overload.

    python -m tests.bench.classify_serving --tokenizer DIR [--rivals PYTHON] [--repeats 3] \
        [--trained DIR --texts test.parquet] [--only-overload]

All serve the same DistilBERT of 66 M parameters (random weights). 16 clients send texts of 64
tokens from a separate process; the servers take turns and use all cores. Plain FastAPI calls
PyTorch in the request handler, one text at a time. The other servers compute in fp32 with PyTorch,
in batches if they can. PYTHON is the interpreter of a virtual environment with litserve and mosec.
Then the classify app with int8 gets five times the requests that it can answer, alternating with
its peak. With --trained, a small trained classifier, the accuracy of each engine on labelled texts
(columns text and label) is printed.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

from tests.bench.machine import Stolen
from tests.ports import free_port
from trainyard_api.checkpoint import MANIFEST, Manifest
from trainyard_api.golden import EvaluationText, write_evaluation
from trainyard_storage.checkpoints import describe_files, manifest_bytes

TOKENS = 64
CLIENTS = 16
OVERLOAD = 5
OURS = {
    "ours, torch": ["--engine=torch"],
    "ours, onnx fp32": ["--engine=onnx"],
    "ours, onnx int8": ["--engine=onnx", "--precision=int8"],
}
RIVALS = {"FastAPI + PyTorch": "plain", "LitServe": "lit", "mosec": "mos"}


def write_model(directory: Path, tokenizer: str) -> str:
    """A DistilBERT with random weights; returns a text of TOKENS tokens."""
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.model_max_length = 512
    words.save_pretrained(directory)
    labels = dict(enumerate("abcd"))
    config = DistilBertConfig(id2label=labels, label2id={n: i for i, n in labels.items()})
    model = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        # Sure of itself, as a trained one is: int8 is refused where rounding changes answers.
        model.classifier.bias.copy_(torch.tensor([8.0, 0.0, 0.0, 0.0]))
    model.save_pretrained(directory)
    write_evaluation(directory, [EvaluationText(text="to be", label=0)] * 10)
    publish(directory)
    text = "news " * TOKENS
    while len(words(text)["input_ids"]) > TOKENS:
        text = text[: -len("news ")]
    return text


def publish(directory: Path) -> None:
    """Write the manifest of a model's directory."""
    (directory / MANIFEST).unlink(missing_ok=True)
    manifest = Manifest(
        kind="model",
        run="bench",
        attempt=1,
        recipe="text-classification",
        step=1,
        created=datetime.now(UTC),
        files=describe_files(directory),
    )
    (directory / MANIFEST).write_bytes(manifest_bytes(manifest))


def command(name: str, directory: Path, port: int, python: str) -> list[str]:
    if name in OURS:
        program = ["trainyard_serving", "classify", f"--model={directory}", f"--port={port}"]
        return [sys.executable, "-m", *program, *OURS[name]]
    arguments = [str(directory), str(port)]
    if RIVALS[name] == "mos":
        arguments = [f"--port={port}", "--address=127.0.0.1"]
    return [python, "-m", f"tests.bench.classify_rivals.{RIVALS[name]}", *arguments]


@contextlib.contextmanager
def served(name: str, directory: Path, rivals: str) -> Iterator[str]:
    """The server's address, once it answers predictions."""
    port = free_port()
    path = os.pathsep.join(filter(None, sys.path))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(name, directory, port, rivals or sys.executable),
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": path, "BENCH_MODEL": str(directory)},
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 180
            while True:
                with contextlib.suppress(OSError):
                    predict(url, "to be")
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{name} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.3)
            yield url
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def predict(url: str, text: str) -> dict[str, Any]:
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url + "/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def asked(url: str, text: str, seconds: float, **more: float) -> dict[str, Any]:
    """What the load generator reports."""
    flags = [f"--{name}={value}" for name, value in more.items()]
    program = [sys.executable, "-m", "tests.bench.classify_load", url, f"--seconds={seconds}"]
    load = subprocess.run(
        [*program, f"--text={text}", *flags], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(load.stdout)
    return found


def capacity(options: argparse.Namespace, directory: Path, text: str) -> None:
    """Print the comparison."""
    names = [*OURS, "FastAPI + PyTorch"]
    if options.rivals:
        names = [*OURS, *RIVALS]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(1, options.repeats + 1):
        for name in names:
            with served(name, directory, options.rivals) as url:
                asked(url, text, 2, clients=CLIENTS)
                found = asked(url, text, options.seconds, clients=CLIENTS)
            results[name].append(found)
            print(f"repeat {repeat}: {name}: {found['per_second']:.1f}/s {found}", flush=True)
    rates: dict[str, float] = {
        n: statistics.median(r["per_second"] for r in runs) for n, runs in results.items()
    }
    table = Table("", "requests/s", "min to max", "p99 ms", "relative to FastAPI + PyTorch")
    for name, runs in results.items():
        each = [run["per_second"] for run in runs]
        table.add_row(
            name,
            f"{rates[name]:.1f}",
            f"{min(each):.1f} to {max(each):.1f}",
            f"{1000 * statistics.median(run['p99'] for run in runs):.0f}",
            f"{rates[name] / rates['FastAPI + PyTorch']:.2f}",
        )
    Console(width=110).print(table)


def overload(options: argparse.Namespace, directory: Path, text: str) -> None:
    """Five times what it can answer, whether or not it answers; between two looks at its peak."""
    table = Table(
        "peak/s", "goodput / peak", "429 p99 ms", "/health p99 ms", "CPU taken by the host"
    )
    shares = []
    with served("ours, onnx int8", directory, "") as url:
        asked(url, text, 2, clients=CLIENTS)
        before = asked(url, text, options.seconds, clients=CLIENTS)["per_second"]
        for _ in range(options.repeats):
            seen = Stolen()
            found = asked(url, text, options.seconds, rate=OVERLOAD * before)
            after = asked(url, text, options.seconds, clients=CLIENTS)["per_second"]
            peak = (before + after) / 2
            shares.append(found["per_second"] / peak)
            table.add_row(
                f"{peak:.1f}",
                f"{shares[-1]:.1%}",
                f"{1000 * (found['refused_p99'] or 0):.1f}",
                f"{1000 * (found['health_p99'] or 0):.1f}",
                f"{seen.share():.0%}",
            )
            print(f"overload at {OVERLOAD * before:.0f}/s: {found}", flush=True)
            before = after
    Console(width=110).print(table)
    print(f"goodput / peak, median: {statistics.median(shares):.1%} (aim >= 90%)")
    print("aims: a 429 within 20 ms, /health within 50 ms")


def accuracy(options: argparse.Namespace, folder: Path) -> None:
    """Of each engine, on labelled texts; the first 2,000 also are what int8 is checked on."""
    rows = parquet.read_table(options.texts, columns=["text", "label"]).to_pydict()
    directory = folder / "trained"
    shutil.copytree(options.trained, directory)
    pairs = list(zip(rows["text"], rows["label"], strict=True))
    write_evaluation(directory, [EvaluationText(text=t, label=n) for t, n in pairs[:2000]])
    publish(directory)
    labels = json.loads((directory / "config.json").read_text())["id2label"]
    for name in OURS:
        right = 0
        with served(name, directory, "") as url:
            for start in range(0, len(pairs), 100):
                part = pairs[start : start + 100]
                body = json.dumps({"texts": [text for text, _ in part]}).encode()
                kind = {"content-type": "application/json"}
                request = urllib.request.Request(url + "/predict/batch", body, kind)
                with urllib.request.urlopen(request, timeout=120) as answer:
                    found = json.loads(answer.read())
                right += sum(
                    each["label"] == labels[str(number)]
                    for each, (_, number) in zip(found, part, strict=True)
                )
            with urllib.request.urlopen(url + "/ready") as answer:
                ready = json.loads(answer.read())
        print(f"{name}: {right / len(pairs):.2%} of {len(pairs)} texts ({ready['precision']})")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--tokenizer", required=True, help="directory of DistilBERT's tokenizer")
    options.add_argument("--rivals", default="", help="a Python with litserve and mosec")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--trained", help="a trained classifier's directory")
    options.add_argument("--texts", help="a .parquet file with text and label")
    options.add_argument("--only-overload", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.trained:
            accuracy(chosen, Path(folder))
        directory = Path(folder) / "model"
        text = write_model(directory, chosen.tokenizer)
        if not chosen.only_overload:
            capacity(chosen, directory, text)
        overload(chosen, directory, text)


if __name__ == "__main__":
    main()
