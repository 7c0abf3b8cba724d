"""mosec with its batching. BENCH_MODEL: the model's directory; the arguments are mosec's."""

import os
from typing import Any

import mosec  # type: ignore[import-not-found]

from tests.bench.classify_rivals.model import Model


class Predict(mosec.Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        self.model = Model(os.environ["BENCH_MODEL"])

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, Any]]:
        return self.model.predict([each["text"] for each in data])


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Predict, num=1, max_batch_size=32, max_wait_time=10, route="/predict")
    server.run()
