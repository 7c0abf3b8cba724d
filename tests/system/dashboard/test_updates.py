"""What the page asks for, draws and stores: no more than has changed, nothing that is outdated."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.dashboard.home import write_run
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings

ODD_NAMES = ("", "__proto__", "constructor", "_", " ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("one", "two"):
        write_run(home, name)
    odd = dict.fromkeys(ODD_NAMES, 7.25)
    with write_run(home, "odd", points=1).open("a") as file:
        for step, kind in ((20, "loss"), (30, "eval_loss")):
            file.write(json.dumps({"step": step, kind: 1.0, **odd}) + "\n")
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


def test_a_metric_may_have_any_name(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#training?select=local/default/odd&select=local/default/one")
    titles = page.locator("#training-charts figcaption h2")
    expect(titles.filter(has_text="(no name)")).to_have_count(2)  # the second one is a space
    for title in ("Proto in evaluation", "Constructor in evaluation", "_ in evaluation"):
        expect(titles.get_by_text(title, exact=True)).to_be_visible()
    expect(page.locator("#problems")).to_be_hidden()
    page.goto(f"{dashboard}/#run?id=local/default/odd")
    evaluations = page.get_by_role("table", name="Evaluations")
    heads = evaluations.get_by_role("columnheader")
    named = ["(no name)", "__proto__", "constructor", "_", "(no name)"]
    expect(heads).to_have_text(["Step", "eval_loss", *named])
    first = evaluations.get_by_role("row", name="10", exact=False).filter(has_text="1.6")
    expect(first.get_by_role("cell")).to_have_text(["1.6", *("–" for _ in named)])
