"""As much of the Hugging Face Hub as a download needs, on the loopback interface.

It serves the files of models and of data sets, and may be away: without an answer, or with one
that says so.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The repositories: name -> files; the name of a data set begins with `datasets/`.

    Attributes:
        status: an HTTP status that answers every request, in place of what is asked for; 0: the
            connection is closed without an answer.
        asked: the paths of all requests.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories = repositories
        self.status: int | None = None
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.status is not None:
            if self.server.status:
                self._answer(self.server.status, b"{}")
            else:
                self.close_connection = True
            return
        path = self.path.partition("?")[0].strip("/")
        for name, files in self.server.repositories.items():
            api = f"api/{name}" if name.startswith("datasets/") else f"api/models/{name}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in files]
                found = {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings}
                self._json(found)
                return
            if f"{path}/".startswith(f"{api}/tree/{COMMIT}/"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                self._json(
                    [
                        {
                            "type": "file",
                            "path": file,
                            "size": len(content),
                            "oid": hashlib.sha1(content).hexdigest(),
                        }
                        for file, content in files.items()
                        if file.rpartition("/")[0] == folder
                    ]
                )
                return
            for revision in ("main", COMMIT):
                prefix = f"{name}/resolve/{revision}/"
                if path.startswith(prefix) and path.removeprefix(prefix) in files:
                    self._answer(200, files[path.removeprefix(prefix)])
                    return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode())

    def _answer(self, status: int, body: bytes) -> None:
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            status, body = 206, body[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def files_in(folder: Path) -> dict[str, bytes]:
    """A repository with the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def hub(repositories: dict[str, dict[str, bytes]], port: int = 0) -> Iterator[Hub]:
    """A Hub that answers as long as the block."""
    with Hub(repositories, port) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
