"""Fixtures: exported models, and one text generation server that tests share."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.serving.models import export_char_gpt, write_manifest
from tests.support.serving.servers import loaded
from trainyard_api.checkpoint import MODELS, step_name

STORIES = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one exported model. Tests that change it copy it first."""
    directory = tmp_path_factory.mktemp("run")
    model = directory / MODELS / step_name(500)
    model.mkdir(parents=True)
    export_char_gpt(model)
    write_manifest(model)
    return directory


@pytest.fixture(scope="session")
def stories_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained model with a manifest of ours."""
    if not STORIES.is_dir():
        pytest.skip("the stories260K model is not beside this checkout (../shared/data)")
    directory = tmp_path_factory.mktemp("stories")
    for file in STORIES.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    write_manifest(directory, run="stories")
    return directory


@pytest.fixture(scope="session")
def client(run_dir: Path) -> Iterator[httpx.Client]:
    """A client of one server that the tests share."""
    with loaded(run_dir=run_dir) as client:
        yield client
