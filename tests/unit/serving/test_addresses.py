"""Which addresses are public, and which private ones may be allowed."""

from ipaddress import ip_address

import pytest

from trainyard_serving.vision.addresses import is_organisation, why_not_public


@pytest.mark.parametrize(
    "text",
    [
        *("8.8.8.8", "93.184.216.34", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1"),
        *("2606:2800:220:1:248:1893:25c8:1946", "2a00:1450:4001:82f::200e", "2001:4860:4860::8888"),
    ],
)
def test_public(text: str) -> None:
    assert why_not_public(ip_address(text)) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("168.63.129.16", "a cloud's metadata service"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),  # a public one in disguise is still one
        ("64:ff9b::808:808", "NAT64"),
        ("2002:808:808::1", "6to4"),
        ("2001:0:1::1", "Teredo"),
        ("fe80::1%eth0", "link-local"),
        ("5f00::1", "not assigned"),
    ],
)
def test_not_public(text: str, why: str) -> None:
    assert why_not_public(ip_address(text)) == why


def test_organisation_addresses_exclude_loopback_and_metadata_services() -> None:
    assert all(is_organisation(ip_address(text)) for text in ("10.1.2.3", "192.168.0.9", "fd12::1"))
    others = ["127.0.0.1", "::1", "169.254.169.254", "100.100.100.200", "fd00:ec2::254", "8.8.8.8"]
    assert not any(is_organisation(ip_address(text)) for text in others)
