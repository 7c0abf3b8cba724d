"""A web server on 127.0.0.1 with a path for each kind of misbehaviour; standard library only."""

import gzip
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()  # an encoder, too; the server has none

IMAGE = "Content-Type: image/png\r\n"
DRIP_SECONDS = 0.05


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 20), color: str = "red") -> bytes:
    """A whole picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, *more: bytes) -> bytes:
    """A PNG whose header claims a size that its few bytes would unpack to."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    parts = [png_chunk(b"IHDR", header), *more, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = picture("JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def gif_claiming(width: int, height: int) -> bytes:
    data = picture("GIF")
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    size = struct.pack("<HH", width, height)
    return data[:6] + size + data[10 : at + 5] + size + data[at + 9 :]


def webp_claiming(width: int, height: int) -> bytes:
    size = ((height - 1) << 14 | (width - 1)).to_bytes(4, "little")  # lossless: 14 bits each
    pixels = b"\x2f" + size + bytes(95)
    body = b"WEBP" + b"VP8L" + struct.pack("<I", len(pixels)) + pixels
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb() -> bytes:
    """A small PNG whose comments unpack to far more than the picture."""
    comment = b"a\0\0" + zlib.compress(bytes(1_000_000), 9)
    return png_claiming(10, 10, *[png_chunk(b"zTXt", comment)] * 60)


def _bodies() -> dict[str, tuple[str, bytes]]:
    """Path -> content type and more headers, body."""
    svg = (
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>'
    )
    bomb = gzip.compress(bytes(20_000_000))
    gzipped = IMAGE + "Content-Encoding: gzip\r\n"
    return {
        "ok.png": (IMAGE, picture()),
        "ok.jpg": ("Content-Type: image/jpeg; q=1\r\n", picture("JPEG")),
        "ok.gif": ("content-type: IMAGE/GIF\r\n", picture("GIF")),
        "ok.webp": ("Content-Type: image/webp\r\n", picture("WEBP")),
        "ok.heic": ("Content-Type: image/heic\r\n", picture("HEIF")),
        "ok.avif": ("Content-Type: image/avif\r\n", picture("AVIF")),
        "ok.bin": ("Content-Type: application/octet-stream\r\n", picture()),
        "zip.bin": ("Content-Type: binary/octet-stream\r\n", b"PK\3\4" + bytes(100)),
        "html": ("Content-Type: text/html\r\n", b"<html>"),
        "svg": ("Content-Type: image/svg+xml\r\n", svg),
        "tiff": ("Content-Type: image/tiff\r\n", picture("TIFF")),
        "json": ("Content-Type: application/json\r\n", b"{}"),
        "zip": ("Content-Type: application/zip\r\n", b"PK\3\4"),
        "no-type": ("", picture()),
        "html-as-png": (IMAGE, b"<html>"),
        "svg-as-png": (IMAGE, svg),
        "zip-as-png": (IMAGE, b"PK\3\4" + bytes(100)),
        "riff-wave": ("Content-Type: image/webp\r\n", b"RIFF\x24\0\0\0WAVEfmt " + bytes(30)),
        "empty": (IMAGE, b""),
        "gzip-bomb": (gzipped, bomb),
        "deflate-bomb": (IMAGE + "Content-Encoding: deflate\r\n", zlib.compress(bytes(10**7))),
        "brotli": (IMAGE + "Content-Encoding: br\r\n", b"\x1b"),
        "twice-gzip": (IMAGE + "Content-Encoding: gzip, gzip\r\n", gzip.compress(bomb)),
        "pixel-bomb.png": (IMAGE, png_claiming(65_535, 65_535)),
        "pixel-bomb.jpg": ("Content-Type: image/jpeg\r\n", jpeg_claiming(65_000, 65_000)),
        "pixel-bomb.gif": ("Content-Type: image/gif\r\n", gif_claiming(65_000, 65_000)),
        "pixel-bomb.webp": ("Content-Type: image/webp\r\n", webp_claiming(16_000, 16_000)),
        "truncated.png": (IMAGE, picture(size=(400, 400))[:-40]),
        "truncated.jpg": ("Content-Type: image/jpeg\r\n", picture("JPEG", (400, 400))[:700]),
        "broken.gif": ("Content-Type: image/gif\r\n", b"GIF89a" + bytes(40)),
        "text-bomb.png": (IMAGE, text_bomb()),
    }


class _Handler(BaseHTTPRequestHandler):
    bodies = _bodies()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = url.path.strip("/")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if name in self.bodies:
            headers, body = self.bodies[name]
            self._send(200, headers + f"Content-Length: {len(body)}\r\n", body)
        elif name == "redirect":
            self._send(302, f"Location: {query['to']}\r\n" if "to" in query else "")
        elif name == "redirect-loop":
            self._send(301, "Location: /redirect-loop\r\n")
        elif name == "redirect-chain":
            left, to = int(query["left"]), query.get("to", "/ok.png")
            step = f"redirect-chain?left={left - 1}&to={quote(to)}" if left else to
            self._send(307, f"Location: {step}\r\n")
        elif name in (statuses := {"failing": 500, "partial": 206}):
            self._send(statuses[name], IMAGE)
        elif name in _MISBEHAVIOUR:
            self._misbehave(_MISBEHAVIOUR[name])
        else:
            self._send(404, IMAGE)

    def _send(self, status: int, headers: str, body: bytes = b"") -> None:
        self._write(f"HTTP/1.1 {status} X\r\n{headers}\r\n".encode() + body)

    def _misbehave(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        for piece in pieces():
            if not self._write(piece):
                return

    def _write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:  # the client has had enough, as it should
            return False
        return True

    def log_message(self, format: str, *args: object) -> None:
        pass


HEAD = f"HTTP/1.1 200 OK\r\n{IMAGE}".encode()


def _again(piece: bytes, first: bytes = b"", seconds: float = 0) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield first
        for _ in range(100_000):
            yield piece
            time.sleep(seconds)

    return pieces


_MISBEHAVIOUR: dict[str, Callable[[], Iterator[bytes]]] = {
    "drip": _again(b"x", HEAD + b"\r\n", DRIP_SECONDS),
    "drip-headers": _again(b"X-A: b\r\n", HEAD, DRIP_SECONDS),
    "silence": _again(b"", b"", DRIP_SECONDS),
    "endless-continue": _again(b"HTTP/1.1 100 Continue\r\n\r\n", b"", DRIP_SECONDS),
    "endless": _again(bytes(65536), HEAD + b"\r\n"),
    "endless-chunks": _again(
        b"10000\r\n" + bytes(65536) + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    ),
    "tiny-chunks": _again(b"1\r\nx\r\n" * 5000, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "chunk-comments": _again(
        b"1;" + b"a" * 10_000 + b"\r\nx\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    ),
    "huge-declared": lambda: iter([HEAD + b"Content-Length: 99999999999\r\n\r\n"]),
    "lying-length": _again(bytes(65536), HEAD + b"Connection: close\r\n\r\n"),
    "endless-headers": _again(b"X-A: " + b"b" * 1000 + b"\r\n", HEAD),
    "not-http": lambda: iter([b"220 mail.test ESMTP\r\n"]),
    "hang-up": lambda: iter([b""]),
    "two-lengths": lambda: iter([HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"]),
    "cut-off": lambda: iter([HEAD + b"Content-Length: 50\r\n\r\nabc"]),
}


@contextmanager
def hostile_web() -> Iterator[int]:
    """The server; yields its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()  # not server_close: it would wait for the threads that still drip
