"""The vision server with the tests' names and one public address; its arguments are ports.

    python -m tests.support.serving.vision_server WEB INTERNAL SGLANG_URL

Only the look-up of names and the last step of connecting are replaced: 93.184.216.34 is the web
server on port WEB. Every check is the real one, and any other address is really connected to.
"""

import sys
from ipaddress import ip_address

import httpcore

from tests import patience
from tests.support.serving.ssrf_corpus import NAMES, PUBLIC
from trainyard_serving import sglang
from trainyard_serving.server import listen, serve
from trainyard_serving.settings import VisionSettings
from trainyard_serving.vision import fetch
from trainyard_serving.vision.addresses import Address
from trainyard_serving.vision.app import create_vision_app, limits
from trainyard_serving.vision.fetch import connect_tcp


class Names:
    """The tests' names, with one that changes its address after the first look-up."""

    def __init__(self) -> None:
        self._lookups = 0

    async def resolve(self, host: str, port: int) -> list[Address]:
        if host == "rebinding.test":
            self._lookups += 1
            return [ip_address(PUBLIC if self._lookups == 1 else "127.0.0.1")]
        if host in NAMES:
            return [ip_address(text) for text in NAMES[host]]
        return await fetch.resolve(host, port)


def fetcher(limits: fetch.FetchLimits, web_port: int) -> fetch.Fetcher:
    """A fetcher for which PUBLIC is the tests' own web server."""

    async def connect(address: Address, port: int) -> httpcore.AsyncNetworkStream:
        if address == ip_address(PUBLIC):
            return await connect_tcp(ip_address("127.0.0.1"), web_port)
        return await connect_tcp(address, port)

    return fetch.Fetcher(limits, Names().resolve, connect)


if __name__ == "__main__":
    sglang.PROBE_SECONDS = patience.SECONDS
    settings = VisionSettings(
        sglang_url=sys.argv[3],
        poll_seconds=0.05,
        fetch_seconds=patience.SECONDS,
        allowed_ports=f"80,443,{sys.argv[2]}",
        max_queue=100,
        drain_seconds=1,
    )
    app = create_vision_app(settings, fetcher(limits(settings), int(sys.argv[1])))
    serve(app, listen("127.0.0.1", 0), settings)
