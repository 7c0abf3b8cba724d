"""Which addresses a URL of a client may lead to: only public ones.

The ranges are those of IANA's special-purpose registries for IPv4 and IPv6. They are listed here in
addition to `ipaddress.is_global`, whose lists have changed between Python releases.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_IPV4 = [
    (ip_network(text), kind)
    for text, kind in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata service"),  # Azure's; the range is public
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "6to4"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_PUBLIC_IPV6 = ip_network("2000::/3")
_NOT_PUBLIC_IPV6 = [
    (ip_network(text), kind)
    for text, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("100::/64", "discarded"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "for documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
]
_ORGANISATION = [
    ip_network(text)
    for text in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
]
# Metadata services give out a machine's credentials: no setting allows access to them.
_METADATA = {ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")}


def why_not_public(address: Address) -> str | None:
    """Why the address is not public, such as `loopback`; None when it is public."""
    known = _NOT_PUBLIC_IPV4 if address.version == 4 else _NOT_PUBLIC_IPV6
    for network, kind in known:
        if address in network:
            return kind
    if address.version == 6 and address not in _PUBLIC_IPV6:
        return "not assigned"
    return None if address.is_global and not address.is_multicast else "not public"


def is_organisation(address: Address) -> bool:
    """Whether the address belongs to an organisation's internal network.

    Loopback, link-local and metadata addresses do not: they belong to one machine.
    """
    return address not in _METADATA and any(address in network for network in _ORGANISATION)
