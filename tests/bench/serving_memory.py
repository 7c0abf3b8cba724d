"""Whether the generate server's memory stays flat: resident memory over many requests.

    OMP_NUM_THREADS=1 python -m tests.bench.serving_memory [--requests 100000] [--seconds 220]

A tiny model, so that what requests leave behind is not hidden by what a model takes. Of ten
requests seven are completions, one is streamed, one is given up by its client half-way, and one is
wrong. Prints resident memory on the way, and the slope over the second half.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp

from tests.bench.serving_process import Server, export_tiny, serving, wait_ready

CLIENTS = 8
POINTS = 20
BODY = {"prompt": "to be", "max_tokens": 1, "temperature": 0}
WRONG = {"prompt": "to be", "temperature": 9}
LONG = BODY | {"max_tokens": 200, "stream": True}


async def one(session: aiohttp.ClientSession, number: int) -> str:
    """Send the request of that number; how it ended."""
    url = "/v1/completions"
    match number % 10:
        case 7:
            body = BODY | {"stream": True}
        case 8:
            async with session.post(url, json=LONG) as response:
                await response.content.readany()
                response.close()  # the rest is never read
                return "given up"
        case 9:
            body = WRONG
        case _:
            body = BODY
    async with session.post(url, json=body) as response:
        await response.read()
        return str(response.status)


async def load(server: Server, requests: int, seconds: float) -> None:
    numbers = itertools.count()
    ended: Counter[str] = Counter()
    points: list[tuple[int, float]] = []
    began = time.monotonic()
    every = max(1, requests // POINTS)

    async def client(session: aiohttp.ClientSession) -> None:
        while (number := next(numbers)) < requests and time.monotonic() < began + seconds:
            ended[await one(session, number)] += 1
            if number % every == 0:
                points.append((number, server.rss_mib()))
                print(f"{number:9,} requests  {points[-1][1]:8.1f} MiB", flush=True)

    async with aiohttp.ClientSession(server.url) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    took, total = time.monotonic() - began, sum(ended.values())
    points.append((total, server.rss_mib()))
    print(f"{total:9,} requests  {points[-1][1]:8.1f} MiB")
    print(f"{total / took:.0f} requests/s for {took:.0f} s; " + report(ended))
    half = [(number, rss) for number, rss in points if number >= total / 2]
    slope, _ = statistics.linear_regression([n for n, _ in half], [rss for _, rss in half])
    print(f"second half: {slope * 1000 * 1024:+.1f} KiB per 1,000 requests")


def report(ended: Counter[str]) -> str:
    return ", ".join(f"{how}: {count:,}" for how, count in sorted(ended.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=220)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = export_tiny(Path(folder) / "model", seed=1)
        with serving("generate", f"--model={model}") as server:
            wait_ready(server.url)
            asyncio.run(load(server, args.requests, args.seconds))


if __name__ == "__main__":
    main()
