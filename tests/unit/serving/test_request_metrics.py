"""What /metrics says about requests: probes are not among them, and the model's state is there."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import until
from tests.support.serving.models import export_char_gpt, write_manifest
from tests.support.serving.servers import serving
from trainyard_api import metrics

ASK = {"prompt": "A", "max_tokens": 2}


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[httpx.Client]:
    """A server whose run has no model yet."""
    (tmp_path / "models").mkdir()
    with serving(run_dir=tmp_path) as client:
        yield client


def samples(client: httpx.Client, name: str) -> dict[tuple[str, ...], float]:
    """The values of a series, by its labels' values without le."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        tuple(value for label, value in sample.labels.items() if label != "le"): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_probes_are_not_counted(waiting: httpx.Client) -> None:
    for path in ("/health", "/ready", "/metrics", "/ready"):
        waiting.get(path)
    assert samples(waiting, metrics.REQUESTS.name) == {}
    assert samples(waiting, f"{metrics.REQUEST_SECONDS}_count") == {}
    assert samples(waiting, metrics.REQUESTS_IN_PROGRESS.name) == {(): 0}


def test_requests_are_counted_and_timed_by_route_and_status(waiting: httpx.Client) -> None:
    waiting.post("/v1/completions", json=ASK)
    waiting.post("/v1/completions", json={})
    for path in ("/v1/models/a", "/v1/models/b", "/invented", "/invented/too"):
        waiting.get(path)
    wanted = {
        ("503", "/v1/completions"): 1,
        ("400", "/v1/completions"): 1,
        ("503", "/v1/models/{name:path}"): 2,
        ("404", "other"): 2,
    }
    assert samples(waiting, metrics.REQUESTS.name) == wanted
    assert samples(waiting, f"{metrics.REQUEST_SECONDS}_count") == wanted


def test_the_gauge_says_whether_there_is_a_model(waiting: httpx.Client, tmp_path: Path) -> None:
    assert samples(waiting, metrics.SERVING_READY.name) == {(): 0}
    staging = tmp_path / "staging"
    staging.mkdir()
    export_char_gpt(staging)
    write_manifest(staging)
    staging.rename(tmp_path / "models" / "step-00000500")
    until(lambda: waiting.get("/ready").status_code == 200)
    assert samples(waiting, metrics.SERVING_READY.name) == {(): 1}
