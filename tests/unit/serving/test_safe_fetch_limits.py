"""The fetcher's own decisions: what it connects to, and under which name."""

import ssl
from ipaddress import ip_address
from typing import Any

import httpcore
import pytest

from trainyard_serving.errors import ApiError
from trainyard_serving.vision.addresses import Address
from trainyard_serving.vision.fetch import Fetcher, FetchLimits

PORTS = frozenset({80, 443})
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\nabc"


class Recorder(httpcore.AsyncNetworkStream):
    """A connection that notes what is asked of it and answers with `OK`."""

    def __init__(self) -> None:
        self.connected: list[tuple[str, int]] = []
        self.tls_name: str | None = None
        self.checks_names = False
        self.sent = b""
        self.refuse: set[str] = set()

    async def connect(self, address: Address, port: int) -> httpcore.AsyncNetworkStream:
        self.connected.append((str(address), port))
        if str(address) in self.refuse:
            raise httpcore.ConnectError("no")
        self._left = OK
        return self

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        self.tls_name = server_hostname
        self.checks_names = (
            ssl_context.check_hostname and ssl_context.verify_mode == ssl.CERT_REQUIRED
        )
        return self

    async def read(self, max_bytes: int, *_: Any, **__: Any) -> bytes:
        data, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return data

    async def write(self, buffer: bytes, *_: Any, **__: Any) -> None:
        self.sent += buffer

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


def fetcher(recorder: Recorder, *addresses: str, **limits: Any) -> Fetcher:
    async def resolve(host: str, port: int) -> list[Address]:
        return [ip_address(text) for text in addresses]

    fields: dict[str, Any] = {"seconds": 5, "max_bytes": 1000, "ports": PORTS} | limits
    return Fetcher(FetchLimits(**fields), resolve, recorder.connect)


async def test_connects_to_the_checked_address_under_the_hosts_name() -> None:
    recorder = Recorder()
    url = "HTTPS://Images.Example.com./a%20b.png?x=1#part"
    assert await fetcher(recorder, "93.184.216.34").fetch(url) == b"abc"
    assert recorder.connected == [("93.184.216.34", 443)]
    assert recorder.tls_name == "images.example.com"
    assert recorder.checks_names
    head = recorder.sent.decode().lower().splitlines()
    assert head[0] == "get /a%20b.png?x=1 http/1.1"
    assert "host: images.example.com" in head
    assert "accept-encoding: identity" in head
    assert not [line for line in head if line.startswith(("cookie", "authorization"))]


async def test_after_an_address_that_does_not_answer_the_next_is_tried() -> None:
    recorder = Recorder()
    recorder.refuse = {"2606:2800::1"}
    both = fetcher(recorder, "2606:2800::1", "93.184.216.34")
    assert await both.fetch("http://example.com/") == b"abc"
    assert [address for address, _ in recorder.connected] == ["2606:2800::1", "93.184.216.34"]


async def test_a_host_with_one_private_address_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(ApiError, match="is not at a public address"):
        await fetcher(recorder, "93.184.216.34", "10.0.0.1").fetch("http://example.com/")
    assert recorder.connected == []


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.0.0.1", True), ("127.0.0.1", False), ("169.254.169.254", False)],
)
async def test_an_allowed_private_host_is_fetched(address: str, allowed: bool) -> None:
    recorder = Recorder()
    named = frozenset({"images.corp"})
    private = fetcher(recorder, address, private_hosts=named)
    if allowed:
        assert await private.fetch("http://images.corp/") == b"abc"
    else:
        with pytest.raises(ApiError, match="is not at a public address"):
            await private.fetch("http://images.corp/")
    with pytest.raises(ApiError, match="is not at a public address"):
        await private.fetch("http://others.corp/")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (httpcore.ConnectError("[Errno 111] ('10.0.0.1', 80)"), "does not accept connections"),
        (httpcore.ReadError("10.0.0.1"), "does not send a whole answer"),
        (httpcore.RemoteProtocolError("<Data at 0x7f>"), "does not send valid HTTP"),
        (OSError("10.0.0.1"), "does not send a whole answer"),
    ],
)
async def test_failures_are_told_in_our_own_words(error: Exception, says: str) -> None:
    class Failing(Recorder):
        async def connect(self, address: Address, port: int) -> httpcore.AsyncNetworkStream:
            raise error

    private = fetcher(Failing(), "10.0.0.1", private_hosts=frozenset({"images.corp"}))
    with pytest.raises(ApiError) as refusal:
        await private.fetch("http://images.corp/")
    assert refusal.value.detail == f"image_url: images.corp {says}"


async def test_a_wrong_certificate_is_named_without_its_address() -> None:
    class Impostor(Recorder):
        async def start_tls(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            cause = ssl.SSLCertVerificationError("not valid for '93.184.216.34'")
            raise httpcore.ConnectError(str(cause)) from cause

    with pytest.raises(ApiError) as refusal:
        await fetcher(Impostor(), "93.184.216.34").fetch("https://example.com/")
    says = "image_url: example.com has no valid certificate for this name"
    assert refusal.value.detail == says
