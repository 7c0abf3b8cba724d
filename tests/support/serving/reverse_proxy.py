"""A small reverse proxy that publishes a server under a path prefix, as an ingress does."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests import patience

PREFIX = "/a/prefix"


@contextmanager
def behind_proxy(server: httpx.Client, strip: bool) -> Iterator[str]:
    """The URL, which ends with PREFIX, of a proxy of `server`.

    strip: whether it removes PREFIX from the paths that the server sees. Other paths are a 404.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not self.path.startswith(PREFIX):
                self.send_error(404, "not of this server")
                return
            path = (self.path.removeprefix(PREFIX) or "/") if strip else self.path
            url = server.base_url
            upstream = http.client.HTTPConnection(url.host, url.port, timeout=patience.SECONDS)
            upstream.request(self.command, path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_HEAD = do_POST = forward

        def log_message(self, *_: Any) -> None:
            """Tests look at what is answered."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
