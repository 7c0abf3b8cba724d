"""A bucket on a real S3-compatible server, behind a proxy that can disturb what is read from it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
NAME = "rows"
_NOT_FORWARDED = {"connection", "transfer-encoding", "content-length", "server", "date"}


class Bucket(ThreadingHTTPServer):
    """The proxy of a bucket that is called NAME.

    Attributes:
        read: the path and the number of bytes of every part of a file that was sent.
        cuts: how many of the next parts break off in their middle.
        before: called before the next parts are read, until it returns False.
        status: an HTTP status that answers every request, in place of what is asked for.
    """

    daemon_threads = True

    def __init__(self, moto: tuple[str, int]) -> None:
        import s3fs  # type: ignore[import-untyped]

        super().__init__(("127.0.0.1", 0), _Handler)
        self.moto = moto
        self.fs: Any = s3fs.S3FileSystem(
            key="test",
            secret="test",
            endpoint_url=f"http://{moto[0]}:{moto[1]}",
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self.read: list[tuple[str, int]] = []
        self.cuts = 0
        self.before: Callable[[], bool] | None = None
        self.status: int | None = None
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a process to it."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}"}

    def put(self, path: str, content: bytes) -> None:
        self.fs.pipe_file(f"{NAME}/{path}", content)

    def upload(self, folder: Path, to: str) -> None:
        for file in folder.iterdir():
            self.put(f"{to}/{file.name}", file.read_bytes())

    def takes_a_cut(self) -> bool:
        with self.lock:
            self.cuts -= 1
            return self.cuts >= 0


class _Handler(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_part = "Range" in self.headers
        if self.server.status is not None:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with self.server.lock:
            if is_part and self.server.before and not self.server.before():
                self.server.before = None
        upstream = HTTPConnection(*self.server.moto)
        upstream.request(self.command, self.path, headers=dict(self.headers.items()))
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        of_head = answer.getheader("Content-Length", "0") if self.command == "HEAD" else None
        self.send_header("Content-Length", of_head or str(len(body)))
        self.end_headers()
        if is_part:
            self.server.read.append((self.path, len(body)))
            if self.server.takes_a_cut():
                body = body[: len(body) // 2]
                self.close_connection = True
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def bucket() -> Iterator[Bucket]:
    """An empty bucket that answers as long as the block."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        with Bucket(moto.get_host_and_port()) as server:
            server.fs.mkdir(NAME)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield server
            finally:
                server.fs.rm(NAME, recursive=True)
                server.shutdown()
                thread.join()
    finally:
        moto.stop()
