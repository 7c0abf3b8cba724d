"""Parses image URLs strictly: refuses what two parsers could interpret differently."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from trainyard_serving.errors import ApiError

MAX_URL = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}

# No user names, backslashes, zone ids, percent signs in the host, or Unicode digits.
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<v6>\[[0-9a-f:.]+\])|(?P<name>[a-z0-9_.-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?][^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# What resolvers may parse as a number: to them, 0x7f.1, 0177.0.0.1 and 2130706433 are 127.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True)
class Url:
    """A URL that may be fetched if its host's addresses are allowed.

    Attributes:
        host: lower case, without brackets or a final dot.
        target: path and query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def refuse(message: str, code: str = "bad_image_url", status: int = 400, **more: Any) -> ApiError:
    """An error about the image's URL."""
    return ApiError(status, f"image_url: {message}", code, "image_url", **more)


def parse(text: str, allowed_ports: frozenset[int]) -> Url:
    """Parse a URL.

    Raises ApiError (400).
    """
    if len(text) > MAX_URL:
        raise refuse(f"is longer than {MAX_URL} characters")
    if any(not "!" <= character <= "~" for character in text):
        raise refuse(
            "contains spaces, control or non-ASCII characters: percent-encode them,"
            " and write international host names as xn--..."
        )
    if "\\" in text:
        raise refuse("contains a backslash")
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in DEFAULT_PORTS:
        raise refuse("must begin with http:// or https://", "bad_scheme")
    if "@" in re.split("[/?#]", rest.removeprefix("//"), maxsplit=1)[0]:
        raise refuse("must not contain a user name or password", "credentials")
    match = _URL.fullmatch(text)
    if match is None:
        raise refuse("is not a valid URL: scheme://host/path")
    port = int(match["port"] or DEFAULT_PORTS[scheme])
    if port not in allowed_ports:
        allowed = ", ".join(str(port) for port in sorted(allowed_ports))
        raise refuse(f"port {port} is not allowed (allowed: {allowed})", "bad_port")
    target = match["target"] or "/"
    host = _ipv6(match["v6"]) if match["v6"] else _name(match["name"])
    return Url(scheme, host, port, target if target[0] == "/" else f"/{target}")


def _ipv6(bracketed: str) -> str:
    try:
        return str(IPv6Address(bracketed[1:-1]))
    except ValueError:
        raise refuse(f"{bracketed} is not an IPv6 address") from None


def _name(text: str) -> str:
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise refuse(f"{text!r} is not an IPv4 address: use four decimal numbers") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise refuse(f"{text!r} is not a host name")
    return name
