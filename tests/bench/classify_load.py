"""Asks a classify server, in a process of its own: closed loop for capacity, open for overload.

    python -m tests.bench.classify_load URL --seconds 10 --clients 16
    python -m tests.bench.classify_load URL --seconds 10 --rate 200

Prints one JSON line: answers by status, answers per second, and centiles of their seconds. Load
and server share the machine, so requests are bytes on kept connections: a client library takes
several times the CPU time of the answer "too busy".
"""

import argparse
import asyncio
import json
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop

from tests.bench.quantiles import quantile

TICK = 0.005  # seconds: what is due by then is sent together, to wake up less often

Times = dict[int, list[float]]  # status -> seconds of each answer; 0: no answer


class Connection(asyncio.Protocol):
    """One connection; one request at a time. Answers have a content-length: ours all do."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._answer and not self._answer.done():
            self._answer.set_result(0)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._received = b""
            self._answer.set_result(int(head[9:12]))

    async def ask(self, request: bytes) -> int:
        """The status of the answer to `request`."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.transport is None:
            return 0
        self.transport.write(request)
        return await self._answer


class Client:
    """Asks one server, on as many connections as there are requests under way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._idle: list[Connection] = []

    async def ask(self, request: bytes, times: Times) -> None:
        began = time.perf_counter()
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.transport is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, self._host, self._port)
        status = await connection.ask(request)
        self._idle.append(connection)
        times.setdefault(status, []).append(time.perf_counter() - began)


async def load(options: argparse.Namespace) -> dict[str, object]:
    """Everything that was answered until the time was over."""
    times: Times = {}
    health: Times = {}
    client = Client(options.url)
    body = json.dumps({"text": options.text}).encode()
    lines = b"Host: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    predict = b"POST /predict HTTP/1.1\r\n" + lines + b"\r\n" + body
    look = b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n"
    began = time.perf_counter()
    stop = began + options.seconds

    async def one_client() -> None:
        while time.perf_counter() < stop:
            await client.ask(predict, times)

    async def probe() -> None:
        while time.perf_counter() < stop:
            await client.ask(look, health)
            await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(probe())]
    if options.rate:
        sent = 0
        while (now := time.perf_counter()) < stop:
            while sent < (now - began) * options.rate:
                tasks.append(asyncio.create_task(client.ask(predict, times)))
                sent += 1
            await asyncio.sleep(TICK)
    else:
        tasks += [asyncio.create_task(one_client()) for _ in range(options.clients)]
    await asyncio.gather(*tasks)
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
    print(json.dumps(uvloop.run(load(options.parse_args()))))


if __name__ == "__main__":
    main()
