"""URLs that must not be fetched, and what each is answered. `{port}` is an internal listener's.

Names ending in .test are resolved by the tests' own resolver (NAMES); `web.test` is a public web
server of theirs (hostile_web.py), whose paths misbehave. All other names take the machine's way.
"""

from dataclasses import dataclass
from urllib.parse import quote

PUBLIC = "93.184.216.34"
NAMES: dict[str, list[str]] = {
    "web.test": [PUBLIC],
    "loopback.test": ["127.0.0.1"],
    "loopback6.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "private.test": ["10.0.0.7"],
    "metadata.test": ["169.254.169.254"],
    "unspecified.test": ["0.0.0.0"],
    # One public address does not make the others good, whatever their order.
    "mixed.test": [PUBLIC, "127.0.0.1"],
    "mixed-first.test": ["::1", PUBLIC],
    "nowhere.test": [],
}


@dataclass(frozen=True)
class Case:
    """A URL, the status of the answer, and words that the answer must hold."""

    url: str
    status: int
    says: str


def _not_public(*hosts: str) -> list[Case]:
    return [Case(f"http://{host}:{{port}}/a.png", 400, "not a public address") for host in hosts]


def _bad(says: str, *urls: str) -> list[Case]:
    return [Case(url, 400, says) for url in urls]


def _web(status: int, says: str, *paths: str) -> list[Case]:
    return [Case(f"http://web.test/{path}", status, says) for path in paths]


def _redirected(case: Case) -> Case:
    return Case(f"http://web.test/redirect?to={quote(case.url, safe='{}')}", case.status, case.says)


ADDRESSES = _not_public(
    # loopback, this network, private
    "127.0.0.1",
    "127.0.0.1.",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    # link-local and metadata services of clouds
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    # documentation, benchmarks, relays, multicast, reserved
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "198.18.0.1",
    "192.88.99.1",
    "192.175.48.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    # IPv6
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:5ef5:79fd:0:0:80ff:fffe]",
    "[2001:2::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "[fc00::1]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[100::1]",
    "[4000::1]",
)
NAMED = [
    Case(f"http://{host}:{{port}}/a.png", 400, "is not at a public address")
    for host in (
        "localhost",
        "LOCALHOST",
        "localhost.",
        "loopback.test",
        "LoopBack.Test.",
        "loopback6.test",
        "mapped.test",
        "nat64.test",
        "private.test",
        "metadata.test",
        "unspecified.test",
        "mixed.test",
        "mixed-first.test",
    )
]
SPELLINGS = [
    *_bad(
        "is not an IPv4 address",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0X7F.0.0.1:{port}/",
        "http://0x7f.0x0.0x0.0x1:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://017700000001:{port}/",
        "http://0177.0.0.0x1:{port}/",
        "http://127.1:{port}/",
        "http://127.0.1:{port}/",
        "http://0:{port}/",
        "http://127.0.0.01:{port}/",
        "http://000127.0.0.1:{port}/",
        "http://127.0.0.1.5:{port}/",
        "http://4294967297:{port}/",
        "http://2852039166/latest/meta-data/",
        "http://0xa9fea9fe/latest/meta-data/",
        "http://0251.0376.0251.0376/latest/meta-data/",
    ),
    *_bad(
        "non-ASCII",
        "http://１２７.０.０.１:{port}/",
        "http://127。0。0。1:{port}/",
        "http://127．0．0．1:{port}/",
        "http://①②⑦.⓪.⓪.①:{port}/",
        "http://١٢٧.٠.٠.١:{port}/",
        "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
        "http://lo\u00adcalhost:{port}/",
        "http://127.0.0.1\u200b:{port}/",
        "http://127.0.0.1:{port}/\x00",
        "http://127.0.0.1:{port}/a b",
        "http://127.0.\t0.1:{port}/",
        "ht\ntp://127.0.0.1:{port}/",
        "http://127.0.0.1\r\nHost: web.test:{port}/",
        " http://127.0.0.1:{port}/",
        "http://web.test\u2044@127.0.0.1:{port}/",
    ),
    *_bad(
        "backslash",
        "http:\\\\127.0.0.1:{port}\\",
        "http://web.test\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@web.test/",
    ),
    *_bad(
        "user name or password",
        "http://user@127.0.0.1:{port}/",
        "http://user:password@127.0.0.1:{port}/",
        "http://web.test@127.0.0.1:{port}/",
        "http://web.test:80@127.0.0.1:{port}/",
        "http://web.test%40@127.0.0.1:{port}/",
        "http://@127.0.0.1:{port}/",
        "http://user:password@web.test/ok.png",
    ),
    *_bad(
        "not a valid URL",
        "http:127.0.0.1:{port}/",
        "http:/127.0.0.1:{port}/",
        "http:///127.0.0.1:{port}/",
        "http://",
        "http://[::1%25lo]:{port}/",
        "http://[fe80::1%eth0]:{port}/",
        "http://[v1.127.0.0.1]:{port}/",
        "http://%31%32%37.0.0.1:{port}/",
        "http://127.0.0.1%2f:{port}/",
        "http://127.0.0.1;web.test:{port}/",
        "http://127.0.0.1,web.test:{port}/",
        "http://web.test:{port}:80/",
        "http://web.test:+80/",
        "http://$(hostname):{port}/",
    ),
    *_bad("not an IPv6 address", "http://[::1::]:{port}/", "http://[:::]/", "http://[127.0.0.1]/"),
    *_bad("not a host name", "http://-web.test/", "http://a..test/", "http://.test/", "http://./"),
    *_bad("longer than", "http://web.test/" + "a" * 2048),
    *_bad(
        "port",
        "http://web.test:22/",
        "http://web.test:6379/",
        "http://web.test:0/",
        "http://web.test:99999/",
        "https://web.test:8443/",
    ),
]
SCHEMES = _bad(
    "must begin with http",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "ftp://127.0.0.1:{port}/a.png",
    "gopher://127.0.0.1:{port}/_GET%20/",
    "dict://127.0.0.1:{port}/info",
    "ldap://127.0.0.1:{port}/",
    "tftp://127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}!/",
    "netdoc:///etc/passwd",
    "unix:///var/run/docker.sock",
    "ws://127.0.0.1:{port}/",
    "javascript:alert(1)",
    "blob:http://127.0.0.1:{port}/1",
    "//127.0.0.1:{port}/a.png",
    "/etc/passwd",
    "127.0.0.1:{port}",
    "localhost",
)
REDIRECTS = [
    *(_redirected(case) for case in ADDRESSES[::5] + NAMED + SCHEMES[:6]),
    _redirected(_bad("must begin with http", "data:image/png;base64,iVBORw0KGgo=")[0]),
    # No header can hold what is not printable.
    *(_redirected(case) for case in SPELLINGS if case.url.isprintable() and case.url[0] != " "),
    *_web(422, "redirects more than 3 times", "redirect-loop", "redirect-chain?left=9"),
    *_web(400, "not a public address", "redirect-chain?left=2&to=http://127.0.0.1:{port}/"),
    *_web(422, "redirects without a location", "redirect"),
    # The name pointed at a public address when it was first looked up.
    Case("http://rebinding.test/redirect?to=http://rebinding.test/ok.png", 400, "not at a public"),
]
BODIES = [
    *_web(413, "is larger than", "endless", "endless-chunks", "huge-declared", "lying-length"),
    *_web(422, "does not send valid HTTP", "endless-headers", "not-http", "hang-up"),
    *_web(422, "does not send valid HTTP", "two-lengths", "cut-off"),
    *_web(422, "too many pieces", "tiny-chunks"),
    *_web(413, "sends more than an image", "chunk-comments"),
    *_web(415, "compressed", "gzip-bomb", "deflate-bomb", "brotli", "twice-gzip"),
    *_web(415, "not an image", "html", "svg", "no-type", "zip", "json", "tiff"),
    *_web(
        415,
        "not an image",
        "html-as-png",
        "svg-as-png",
        "zip-as-png",
        "zip.bin",
        "empty",
        "riff-wave",
    ),
    *_web(422, "answered 404", "missing"),
    *_web(422, "answered 500", "failing"),
    *_web(422, "answered 206", "partial"),
    *_web(413, "pixels", "pixel-bomb.png", "pixel-bomb.jpg", "pixel-bomb.gif", "pixel-bomb.webp"),
    *_web(422, "cannot be read", "truncated.png", "truncated.jpg", "broken.gif", "text-bomb.png"),
    *_web(422, "is unknown", "redirect?to=http://nowhere.test/"),
]
CASES = [*ADDRESSES, *NAMED, *SPELLINGS, *SCHEMES, *REDIRECTS, *BODIES]
