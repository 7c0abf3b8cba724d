"""The SSRF corpus against a vision server in its own process: nothing internal is reached."""

import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests import patience
from tests.patience import until
from tests.support.serving.hostile_web import hostile_web
from tests.support.serving.sglang_server import stand_in
from tests.support.serving.sglang_stand_in import StandIn
from tests.support.serving.ssrf_corpus import (
    ADDRESSES,
    BODIES,
    CASES,
    NAMED,
    NAMES,
    REDIRECTS,
    Case,
)

# What no answer may hold: objects of Python, errors of the system, and addresses that DNS gave.
LEAKS = ["\n", "0x", "<", "Errno"]
RESOLVED = [address for addresses in NAMES.values() for address in addresses]
ROOT = Path(__file__).parents[3]
MAX_GROWTH_KIB = 64 * 1024


class Listener:
    """An internal service: counts who connects, over IPv4 and IPv6."""

    def __init__(self) -> None:
        self.connections = 0
        ipv4 = socket.create_server(("127.0.0.1", 0))
        self.port = ipv4.getsockname()[1]
        self._sockets = [ipv4]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for sock in self._sockets:
            threading.Thread(target=self._count, args=[sock], daemon=True).start()

    def _count(self, sock: socket.socket) -> None:
        while True:
            try:
                peer, _ = sock.accept()
            except OSError:
                return
            self.connections += 1
            peer.close()

    def close(self) -> None:
        for sock in self._sockets:
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@dataclass
class ServerUnderTest:
    """The server under attack, and what must not be reached from it."""

    client: httpx.Client
    pid: int
    internal: Listener
    sglang: StandIn

    def ask(self, url: str) -> httpx.Response:
        url = url.replace("{port}", str(self.internal.port))
        return self.client.post("/answer", json={"image_url": url, "question": "What is it?"})

    def forget_peak(self) -> int:
        """From now on the peak is the present: KiB of resident memory."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.peak_kib()

    def peak_kib(self) -> int:
        """The most resident memory the process has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with ExitStack() as stack:
        web = stack.enter_context(hostile_web())
        sglang = stack.enter_context(stand_in())
        internal = Listener()
        stack.callback(internal.close)
        # A proxy from the environment would fetch what passes the checks.
        proxy = f"http://127.0.0.1:{internal.port}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        module = "tests.support.serving.vision_server"
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(web), str(internal.port), sglang.url],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | dict.fromkeys(names, proxy),
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout
        base = process.stdout.readline().removeprefix("listening on ").strip()
        client = stack.enter_context(httpx.Client(base_url=base, timeout=patience.SECONDS))
        until(lambda: client.get("/ready").status_code == 200)
        yield ServerUnderTest(client, process.pid, internal, sglang)


def check(case: Case, response: httpx.Response) -> str | None:
    """What is wrong with the answer; None when it is right."""
    detail = response.json().get("error", {}).get("message", "")
    leaks = [text for text in LEAKS if text in detail and text not in case.url]
    if case in NAMED:
        leaks += [address for address in RESOLVED if address in detail]
    if response.status_code == case.status and case.says in detail and not leaks:
        return None
    return f"{case.url[:80]!r}: {response.status_code} {detail!r}, not {case.status} {case.says!r}"


def test_no_url_reaches_an_internal_listener_and_each_gets_a_reason(
    server: ServerUnderTest,
) -> None:
    server.internal.connections = 0
    with ThreadPoolExecutor(8) as pool:
        wrong = list(pool.map(lambda case: check(case, server.ask(case.url)), CASES))
    assert [line for line in wrong if line] == []
    assert server.internal.connections == 0
    assert server.sglang.requests == []
    assert server.client.get("/health").json()["status"] == "healthy"


def test_no_url_of_a_chat_reaches_an_internal_listener(server: ServerUnderTest) -> None:
    server.internal.connections = 0
    for case in [*ADDRESSES[::4], *NAMED, *REDIRECTS[::4]]:
        url = case.url.replace("{port}", str(server.internal.port))
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"messages": [{"role": "user", "content": parts}]}
        response = server.client.post("/v1/chat/completions", json=body)
        assert check(case, response) is None
    assert server.internal.connections == 0
    assert server.sglang.requests == []


def test_large_bodies_and_decompression_bombs_do_not_fill_the_memory(
    server: ServerUnderTest,
) -> None:
    assert server.ask("http://web.test/ok.png").status_code == 200  # all code is loaded
    before = server.forget_peak()
    for case in BODIES:
        assert check(case, server.ask(case.url)) is None
    assert server.peak_kib() - before < MAX_GROWTH_KIB


def test_a_large_image_takes_no_memory_of_the_server(server: ServerUnderTest) -> None:
    out = io.BytesIO()
    Image.new("RGB", (6000, 6000), "red").save(out, "PNG", compress_level=1)  # 180 MB decoded
    before = server.forget_peak()
    files = {"image": ("a", out.getvalue())}
    response = server.client.post("/answer", files=files, data={"question": "?"})
    assert response.json()["image"] == {"width": 6000, "height": 6000}
    assert server.peak_kib() - before < MAX_GROWTH_KIB


@pytest.mark.parametrize(
    "name",
    [f"ok.{kind}" for kind in ("png", "jpg", "gif", "webp", "heic", "avif", "bin")]
    + ["redirect-chain?left=2"],
)
def test_an_image_at_a_public_address_is_answered(server: ServerUnderTest, name: str) -> None:
    response = server.ask(f"http://WEB.test:80/{name}")
    assert response.status_code == 200, response.text
    assert response.json()["image"] == {"width": 40, "height": 20}


def test_the_internal_listener_counts_connections(server: ServerUnderTest) -> None:
    before = server.internal.connections
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, server.internal.port)).close()
    until(lambda: server.internal.connections == before + 2)
