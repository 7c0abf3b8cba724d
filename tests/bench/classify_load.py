"""Asks a classify server, in a process of its own: closed loop for capacity, open for overload.

    python -m tests.bench.classify_load URL --seconds 10 --clients 16
    python -m tests.bench.classify_load URL --seconds 10 --rate 200

Prints one JSON line: answers by status, answers per second, and centiles of their seconds.
"""

import argparse
import asyncio
import json
import time

import aiohttp

from tests.bench.quantiles import quantile

Times = dict[int, list[float]]  # status -> seconds of each answer


async def ask(session: aiohttp.ClientSession, url: str, text: str, times: Times) -> None:
    """One request; status 0 if there was no answer."""
    began = time.perf_counter()
    try:
        async with session.post(url + "/predict", json={"text": text}) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    times.setdefault(status, []).append(time.perf_counter() - began)


async def look(session: aiohttp.ClientSession, url: str, times: Times, stop: float) -> None:
    """GET /health ten times a second, one after the other."""
    while time.perf_counter() < stop:
        began = time.perf_counter()
        async with session.get(url + "/health") as answer:
            await answer.read()
            times.setdefault(answer.status, []).append(time.perf_counter() - began)
        await asyncio.sleep(0.1)


async def load(options: argparse.Namespace) -> dict[str, object]:
    """Everything that was answered until the time was over."""
    times: Times = {}
    health: Times = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        began = time.perf_counter()
        stop = began + options.seconds

        async def client() -> None:
            while time.perf_counter() < stop:
                await ask(session, options.url, options.text, times)

        watch = asyncio.create_task(look(session, options.url, health, stop))
        tasks = []
        if options.rate:
            sent = 0
            while (now := time.perf_counter()) < stop:
                while sent < (now - began) * options.rate:
                    tasks.append(
                        asyncio.create_task(ask(session, options.url, options.text, times))
                    )
                    sent += 1
                await asyncio.sleep(0.002)
        else:
            tasks = [asyncio.create_task(client()) for _ in range(options.clients)]
        await asyncio.gather(*tasks, watch)
        seconds = time.perf_counter() - began
    good = times.get(200, [])
    return {
        "answers": {str(status): len(each) for status, each in sorted(times.items())},
        "per_second": len(good) / seconds,
        "p50": quantile(good, 0.5),
        "p99": quantile(good, 0.99),
        "refused_p99": quantile(times.get(429, []), 0.99),
        "health_p99": quantile(health.get(200, []), 0.99),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("url")
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--clients", type=int, default=16, help="each waits for its answers")
    options.add_argument("--rate", type=float, default=0, help="requests a second, whatever comes")
    options.add_argument("--text", default="to be")
    print(json.dumps(asyncio.run(load(options.parse_args()))))


if __name__ == "__main__":
    main()
