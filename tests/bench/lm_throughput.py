"""Tokens per second of the trainer beside a plain loop and the Hugging Face Trainer.

    python -m tests.bench.lm_throughput [--repeats 5] [--steps 200] [--tokenizer DIR --text FILE]

Contenders, each as one process and as two DDP processes under torchrun, with the same model shape,
the same sequences per process and one thread per process: plain_loop.py, hf_trainer.py, and the
trainer with recipe gpt. The trainer and the Hugging Face Trainer save checkpoints; the trainer is
scraped, too. Runs are interleaved, so that a noisy machine is noisy for all. Timed from the end of
the warm-up steps to the last step. Prints every run and a table of medians and ratios.

The tokens are the characters of the standard library's source; with --tokenizer and --text those of
a text, such as GPT-2's of Tiny Shakespeare.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trainyard_trainer.bpe_tokenizer import BPETokenizer, pieces
from trainyard_trainer.char_tokenizer import CharTokenizer
from trainyard_trainer.corpus import load_text

HERE = Path(__file__).parent
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass(frozen=True)
class Setting:
    """What all contenders get."""

    options: argparse.Namespace
    tokens: Path
    tokenizer: Path
    vocab_size: int

    @property
    def shape(self) -> dict[str, int]:
        names = ("batch_size", "block_size", "n_layer", "n_head", "n_embd")
        return {name: getattr(self.options, name) for name in names}


@dataclass(frozen=True)
class Result:
    """One run: tokens per second of all processes, and the last loss it told."""

    rate: float
    loss: float


def script(name: str, setting: Setting, processes: int, *more: str) -> Result:
    """Run a contender that prints its own result."""
    options = [f"--{key.replace('_', '-')}={value}" for key, value in setting.shape.items()]
    options += [f"--steps={setting.options.steps}", f"--warmup={setting.options.warmup}", *more]
    options += [f"--tokens={setting.tokens}", f"--vocab-size={setting.vocab_size}"]
    launcher = [*LAUNCHER, str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(HERE / name), *options]
    run = subprocess.run(command, env=ENV, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr}")
    result = json.loads(run.stdout.strip().splitlines()[-1])
    return Result(result["tokens_per_second"], result["loss"])


def plain(setting: Setting, processes: int) -> Result:
    return script("plain_loop.py", setting, processes)


def hugging_face(setting: Setting, processes: int) -> Result:
    saves = f"--save-every={setting.options.save_every}"
    return script("hf_trainer.py", setting, processes, saves)


def trainer(setting: Setting, processes: int) -> Result:
    """Timed between two lines of its metrics.jsonl."""
    options, shape = setting.options, setting.shape
    with tempfile.TemporaryDirectory() as folder, scraped() as port:
        run_dir = Path(folder) / "run"
        config = shape | {
            "batch_size": shape["batch_size"] * processes,
            "corpus": str(setting.tokens),
            "tokenizer": str(setting.tokenizer),
            "pad_vocab_to_multiple_of": 1,
            "max_steps": options.steps,
            "learning_rate": 1e-3,
            "eval_steps": 0,
            "eval_batches": 1,
            "sample_tokens": 1,
        }
        job = {
            "run": "bench",
            "recipe": "gpt",
            "config": config,
            "checkpoint": {"everySteps": options.save_every, "keepLast": 2},
            "runDir": str(run_dir),
            "reportPort": port,
        }
        launcher = [*LAUNCHER, str(processes)] if processes > 1 else []
        command = [sys.executable, *launcher, "-m", "trainyard_trainer"]
        env = ENV | {"TRAINYARD_JOB": json.dumps(job)}
        run = subprocess.run(command, env=env, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"the trainer failed:\n{run.stderr}")
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    logged = {line["step"]: line for line in map(json.loads, lines) if "loss" in line}
    seconds = logged[options.steps]["time"] - logged[options.warmup]["time"]
    sequences = (options.steps - options.warmup) * config["batch_size"]
    return Result(sequences * shape["block_size"] / seconds, logged[options.steps]["loss"])


@contextlib.contextmanager
def scraped() -> Iterator[int]:
    """A port that is asked, every 5 seconds, what Prometheus and the operator ask a trainer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(5):
            for path in ("metrics", "progress"):
                with contextlib.suppress(OSError):  # not up yet, or already gone
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).read()

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        yield port
    finally:
        stop.set()
        scraper.join()


CONTENDERS = {"plain loop": plain, "Hugging Face Trainer": hugging_face, "trainer": trainer}
Results = dict[tuple[str, int], list[Result]]


def prepare(options: argparse.Namespace, folder: Path) -> Setting:
    """Write the tokens and the tokenizer that all contenders use."""
    tokens = folder / "tokens.npy"
    if options.tokenizer:
        bpe = BPETokenizer(options.tokenizer)
        np.save(tokens, bpe.encode_all(pieces(load_text(options.text)), None))
        return Setting(options, tokens, Path(options.tokenizer), bpe.vocab_size)
    text = load_text(options.text)
    characters = CharTokenizer.of(text)
    characters.save(folder, options.block_size)
    np.save(tokens, characters.encode(text).astype(np.uint16))
    return Setting(options, tokens, folder, characters.vocab_size)


def show(results: Results) -> None:
    """The medians side by side."""
    median = {key: statistics.median(r.rate for r in runs) for key, runs in results.items()}
    table = Table("", "processes", "tokens/s", "min to max", "of the plain loop", "last loss")
    for (name, processes), runs in results.items():
        rates = [run.rate for run in runs]
        table.add_row(
            name,
            str(processes),
            f"{median[name, processes]:,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{median[name, processes] / median['plain loop', processes]:.3f}",
            f"{runs[-1].loss:.3f}",
        )
    Console(width=110).print(table)
    for processes in sorted({processes for _, processes in results}):
        ours = median["trainer", processes]
        for other, least in (("plain loop", 1.0), ("Hugging Face Trainer", 1.1)):
            ratio = ours / median[other, processes]
            print(f"trainer / {other}, {processes} process(es): {ratio:.3f} (aim >= {least})")
    for name in CONTENDERS:
        if (name, 2) in median:
            efficiency = median[name, 2] / (2 * median[name, 1])
            aim = " (aim >= 0.90)" if name == "trainer" else ""
            print(f"1 -> 2 processes, {name}: efficiency {efficiency:.1%}{aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=50, help="a multiple of 10")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", help="a directory with tokenizer.json (one per character)")
    parser.add_argument("--text", default="stdlib", help="as a recipe's corpus (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=12, help="sequences per process")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-head", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=128)
    options = parser.parse_args()
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(options, Path(folder))
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        print(f"{machine}; {setting.shape}, vocabulary {setting.vocab_size:,}")
        for repeat in range(1, options.repeats + 1):
            for processes in options.processes:
                for name, contender in CONTENDERS.items():
                    result = contender(setting, processes)
                    results.setdefault((name, processes), []).append(result)
                    print(
                        f"repeat {repeat}: {name} x{processes}: {result.rate:,.0f} tokens/s,"
                        f" loss {result.loss:.3f} (load {os.getloadavg()[0]:.1f})",
                        flush=True,
                    )
    show(results)


if __name__ == "__main__":
    main()
