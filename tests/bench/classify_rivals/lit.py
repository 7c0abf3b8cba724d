"""LitServe with its batching. Arguments: model directory, port."""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]

from tests.bench.classify_rivals.model import Model


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.model = Model(sys.argv[1])

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.model.predict(texts)

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        return answer


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.01, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
