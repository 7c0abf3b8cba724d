"""A Prometheus server on 127.0.0.1 (Debian's package) that scrapes every second."""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import patience
from tests.patience import until
from tests.ports import free_port


@dataclass(frozen=True)
class Target:
    """A scrape target, with the labels that Kubernetes' service discovery would add."""

    port: int
    labels: dict[str, str] = field(default_factory=dict)
    honor_labels: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"


class Prometheus:
    """A client of the server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=patience.SECONDS)

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The series of an instant query with their values, without NaN."""
        answer = self._http.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {expr}"
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        series = [(item["metric"], float(item["value"][1])) for item in data["result"]]
        return [(labels, value) for labels, value in series if not math.isnan(value)]

    def get(self, path: str) -> Any:
        return self._http.get(path).json()["data"]

    def close(self) -> None:
        self._http.close()


@contextmanager
def prometheus(directory: Path, targets: dict[str, list[Target]], rules: Path) -> Iterator[Any]:
    """A running server that scrapes `targets`, by job name, and evaluates `rules`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not on PATH (Debian: apt-get install prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": job,
                "honor_labels": any(target.honor_labels for target in group),
                "static_configs": [
                    {"targets": [f"127.0.0.1:{target.port}"], "labels": target.labels}
                    for target in group
                ],
            }
            for job, group in targets.items()
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.format=json",
            ],
            stdout=log,
            stderr=log,
            env=os.environ | {"GOMAXPROCS": "1"},
        )
        client = Prometheus(port)
        try:
            until(lambda: client.ready() or server.poll() is not None, "Prometheus")
            assert server.poll() is None, (directory / "log").read_text()
            yield client
        finally:
            client.close()
            server.terminate()
            server.wait(patience.SECONDS)


def exposition(target: Target) -> str:
    answer = httpx.get(target.url, timeout=patience.SECONDS)
    assert answer.status_code == 200
    return answer.text
