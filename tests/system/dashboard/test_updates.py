"""What the page asks for, draws and stores: no more than has changed, nothing that is outdated."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.support.dashboard.home import write_run
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("one", "two"):
        write_run(home, name)
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 0.3})
    with running(create_dashboard_app(settings)) as asked:
        yield str(asked.base_url)


def test_line_styles_are_stored_only_when_they_change(dashboard: str, page: Page) -> None:
    """With more runs than there are styles, too: then some share one."""
    page.goto(dashboard)
    script = """async () => {
      const { assign, styleOf } = await import("/static/styles.js");
      let writes = 0;
      const { setItem } = Storage.prototype;
      Storage.prototype.setItem = function (...what) {
        writes += 1;
        setItem.apply(this, what);
      };
      const ids = [...Array(50).keys()].map((number) => `local/default/run-${number}`);
      for (let poll = 0; poll < 3; poll += 1) assign(ids);
      const styles = new Set(ids.map(styleOf)).size;
      const pairs = ids.filter((_, place) => place % 32 < 16); // 32 runs, two by two in one style
      assign(pairs);
      return [writes, styles, new Set(pairs.map(styleOf)).size];
    }"""
    assert page.evaluate(script) == [2, 32, 32]
