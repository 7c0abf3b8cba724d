"""Fixtures of these tests: a browser, a dashboard, and a model's server for its demo."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving.browser import chromium as chromium
from tests.support.serving.browser import page as page
from tests.support.serving.fixtures import client as client
from tests.support.serving.fixtures import run_dir as run_dir
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    """The address of a dashboard that shows the runs of the module's own `home`."""
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 0.3})
    with running(create_dashboard_app(settings)) as asked:
        yield str(asked.base_url)
