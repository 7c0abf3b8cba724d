"""What writing texts together gains: generate's server against itself with --max-batch-size 1.

    python -m tests.bench.generate_serving [--repeats 2] [--shape 124M]

Real server processes with random weights, one thread each, both loaded all the time and measured
in turns. 1, 4 and 8 clients stream completions of several lengths, each the next one as soon as it
has the last. Prints tokens/s and the time to the first token (p50 and p99 of all repetitions).
"""

import argparse
import asyncio
import random
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import torch

from tests.bench.quantiles import quantile
from tests.bench.serving_process import TEXT, serving, wait_ready
from trainyard_trainer.data.tokenizers import CharTokenizer
from trainyard_trainer.models.gpt import GPT, GPTShape, write_gpt2

CLIENTS = (1, 4, 8)
BATCH_SIZES = (8, 1)


@dataclass(frozen=True)
class Subject:
    """A model, and how much each client asks of it."""

    shape: GPTShape
    requests: int
    max_tokens: tuple[int, int]


SUBJECTS = {
    "0.8M": Subject(GPTShape(100, 256, n_layer=4, n_head=4, n_embd=128), 3, (20, 120)),
    "124M": Subject(GPTShape(50257, 1024, n_layer=12, n_head=12, n_embd=768), 1, (8, 24)),
}


@dataclass
class Seen:
    """What the clients saw of one server."""

    tokens: int = 0
    seconds: float = 0
    first: list[float] = field(default_factory=list)

    def line(self) -> str:
        p50, p99 = (1000 * (quantile(self.first, share) or 0) for share in (0.5, 0.99))
        return f"{self.tokens / self.seconds:8.1f} tokens/s, first token {p50:7.0f} / {p99:7.0f} ms"


def export(directory: Path, shape: GPTShape) -> Path:
    """A character tokenizer, and a GPT of that shape that likes no character in particular."""
    directory.mkdir()
    torch.manual_seed(1)
    write_gpt2(GPT(shape).state_dict(), shape, directory)
    CharTokenizer.of(TEXT).save(directory, shape.block_size)
    return directory


async def ask(session: aiohttp.ClientSession, seen: Seen, rng: random.Random, most: int) -> None:
    """One streamed completion."""
    asked = {
        "prompt": "".join(rng.choices(TEXT, k=rng.randint(8, 64))),
        "max_tokens": most,
        "seed": rng.randrange(1000),
        "stream": True,
    }
    began = time.perf_counter()
    async with session.post("/v1/completions", json=asked) as response:
        assert response.status == 200, await response.text()
        events = 0
        async for line in response.content:
            if line.startswith(b"data: {"):
                if not events:
                    seen.first.append(time.perf_counter() - began)
                events += 1
    assert events == most, f"{events} characters of {most}"
    seen.tokens += events


async def load(url: str, clients: int, subject: Subject, seen: Seen, seed: int) -> None:
    """All clients at once, until each has all its answers."""

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        for _ in range(subject.requests):
            await ask(session, seen, rng, rng.randint(*subject.max_tokens))

    async with aiohttp.ClientSession(url) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        seen.seconds += time.perf_counter() - began


def measure(name: str, subject: Subject, folder: Path, repeats: int) -> None:
    directory = export(folder / name, subject.shape)
    with ExitStack() as stack:
        flags = ("--model", str(directory), "--max-batch-size")
        servers = {
            size: stack.enter_context(serving("generate", *flags, str(size))).url
            for size in BATCH_SIZES
        }
        for url in servers.values():
            wait_ready(url)
            asyncio.run(load(url, 1, subject, Seen(), seed=-1))
        for clients in CLIENTS:
            seen = {size: Seen() for size in BATCH_SIZES}
            for repeat in range(repeats):
                for size, url in servers.items():
                    asyncio.run(load(url, clients, subject, seen[size], repeat))
            for size in BATCH_SIZES:
                print(f"{name} {clients} clients, batches of {size}: {seen[size].line()}")
            rates = [seen[size].tokens / seen[size].seconds for size in BATCH_SIZES]
            waits = [quantile(seen[size].first, 0.5) or 0 for size in BATCH_SIZES]
            print(
                f"{name} {clients} clients: {rates[0] / rates[1]:.2f} times the tokens/s,"
                f" first token (p50) in {waits[0] / waits[1]:.2f} of the time",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shape", choices=SUBJECTS, help="only this model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, subject in SUBJECTS.items():
            if args.shape in (None, name):
                measure(name, subject, Path(folder), args.repeats)


if __name__ == "__main__":
    main()
