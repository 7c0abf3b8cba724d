"""The classify server of a run's exported model, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.patience import until
from tests.support.serving.servers import running
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_serving.classify.app import create_classify_app
from trainyard_serving.settings import ClassifySettings


@contextmanager
def classify_server(run_dir: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A server whose model is loaded."""
    values = ClassifySettings(
        run_dir=str(run_dir), threads=1, **{"poll_seconds": 0.05, "check_texts": 20, **settings}
    )
    with running(create_classify_app(values)) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def model_of(run_dir: Path, step: int) -> Path:
    return run_dir / MODELS / step_name(step)
