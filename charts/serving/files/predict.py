"""The program of `helm test`: one request through the Service, to the model that /ready reports."""

import http.client
import json
import os
import struct
import sys
import time
import zlib
from typing import Any

DEADLINE = time.monotonic() + 240  # `helm test` itself waits 300 s
ASK = os.environ["ASK"]
KEY = os.environ.get("API_KEY", "").split(",")[0].strip()
BOUNDARY = "a-red-square"


class Server:
    """One connection, so that all responses come from the same pod."""

    def __init__(self) -> None:
        host, port = os.environ["HOST"], int(os.environ["PORT"])
        self.connection = http.client.HTTPConnection(host, port, timeout=240)

    def ready(self) -> dict[str, Any]:
        """The response of /ready. Raises ConnectionError while the server is not ready."""
        status, _, answer = self.call("GET", "/ready")
        if status != 200:
            raise ConnectionError(answer.get("reason", answer))
        return answer

    def predict(self, path: str, body: bytes, kind: str = "application/json") -> dict[str, Any]:
        """The response, if the same model is ready before and after it."""
        before = self.ready().get("digest")
        status, digest, answer = self.call("POST", path, body, kind)
        assert status == 200, f"{status}: {answer}"
        if not before == digest == self.ready().get("digest"):
            raise ConnectionError(f"the model has changed: {before}, {digest}")
        return answer

    def call(
        self, method: str, path: str, body: bytes = b"", kind: str = ""
    ) -> tuple[int, str | None, dict[str, Any]]:
        """The status, the digest in the header, and the JSON."""
        headers = {"content-type": kind} if kind else {}
        headers |= {"authorization": f"Bearer {KEY}"} if KEY else {}
        self.connection.request(method, path, body or None, headers)
        response = self.connection.getresponse()
        text = response.read()
        return response.status, response.headers["x-trainyard-digest"], json.loads(text)


def generate(server: Server) -> str:
    """A completion by OpenAI's API."""
    body = {"prompt": ASK, "max_tokens": 32, "seed": 0}
    text = server.predict("/v1/completions", json.dumps(body).encode())["choices"][0]["text"]
    assert text, "the completion is empty"
    return repr(text)


def classify(server: Server) -> str:
    """The class of a text."""
    answer = server.predict("/predict", json.dumps({"text": ASK}).encode())
    probabilities = answer["probs"]
    assert abs(sum(probabilities.values()) - 1) < 0.01, f"no probabilities: {probabilities}"
    assert answer["confidence"] == max(probabilities.values()), (
        f"not the most likely class: {answer}"
    )
    return f"{answer['label']!r} with confidence {answer['confidence']:.2f}"


def embed(server: Server) -> str:
    """The embedding of a text by OpenAI's API."""
    answer = server.predict("/v1/embeddings", json.dumps({"input": ASK}).encode())
    embedding = answer["data"][0]["embedding"]
    assert any(embedding), "the embedding is zero"
    return f"with {len(embedding)} dimensions"


def vision(server: Server) -> str:
    """A question about an uploaded image."""
    disposition = "Content-Disposition: form-data; name="
    body = b"\r\n".join(
        [
            f'--{BOUNDARY}\r\n{disposition}"question"\r\n\r\n{ASK}'.encode(),
            f'--{BOUNDARY}\r\n{disposition}"image"; filename="red.png"'.encode(),
            b"Content-Type: image/png\r\n\r\n" + red_square(),
            f"--{BOUNDARY}--\r\n".encode(),
        ]
    )
    answer = server.predict("/answer", body, f"multipart/form-data; boundary={BOUNDARY}")["answer"]
    assert answer, "the answer is empty"
    return repr(answer)


def red_square() -> bytes:
    """A PNG of 64 x 64 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = 64
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\xff\0\0" * size) * size
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def main() -> None:
    """Print one line with the answer, or exit with status 1."""
    apps = {"generate": generate, "classify": classify, "embed": embed, "vision": vision}
    app = apps[os.environ["APP"]]
    run = os.environ.get("RUN")
    while True:
        try:
            server = Server()
            ready = server.ready()
            assert not run or ready["run"] == run, f"the model is of run {ready['run']}"
            answer = app(server)
            print(f"{ready.get('run', 'the model')} {ready.get('digest', '')} answered {answer}")
            break
        except (OSError, http.client.HTTPException) as error:  # not reachable or not ready yet
            if time.monotonic() > DEADLINE:
                sys.exit(f"no answer: {error}")
            time.sleep(1)


main()
