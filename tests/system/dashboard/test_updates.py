"""What the page asks for, draws and stores: no more than has changed, nothing that is outdated."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.dashboard.home import write_run
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings

WIDE = {f"metric_{number:03}": float(number) for number in range(140)}
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
    with write_run(home, "wide", points=1).open("a") as file:
        file.write(json.dumps({"step": 20, "loss": 1.0, **WIDE}) + "\n")
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 0.3})
    with running(create_dashboard_app(settings)) as asked:
        yield str(asked.base_url)


def progressed(home: Path, name: str, step: int, **metrics: float) -> None:
    """The run has logged this step."""
    with (home / "runs" / name / "data" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": 1767225600.0 + step, **metrics}) + "\n")
    path = home / "runs" / name / "run.json"
    run = json.loads(path.read_text())
    run["status"]["step"] = step
    (path.parent / "new.json").write_text(json.dumps(run))
    (path.parent / "new.json").replace(path)


def test_any_number_of_metrics_is_shown(dashboard: str, home: Path, page: Page) -> None:
    """More than one request may name."""
    page.goto(f"{dashboard}/#training?select=local/default/wide&select=local/default/one")
    last = page.locator("#plot-training-charts-metric_139")
    expect(last.locator("canvas")).to_be_visible()
    first = page.locator("#plot-training-charts-metric_000")
    for chart in (first, last):
        expect(chart).to_have_attribute("aria-label", re.compile(" at 20$"))
    progressed(home, "wide", 30, **{"loss": 1.0, **WIDE})
    for chart in (first, last):
        expect(chart).to_have_attribute("aria-label", re.compile(" at 30$"))
    expect(page.locator("#problems")).to_be_hidden()


def test_an_answer_about_a_run_that_is_no_longer_selected_is_ignored(
    dashboard: str, home: Path, page: Page
) -> None:
    page.goto(f"{dashboard}/#training?select=local/default/one&select=local/default/two")
    loss = page.locator("#plot-training-charts-loss")
    expect(loss).to_have_attribute("aria-label", re.compile("one: .*two: "))
    page.evaluate(
        """window.said = [];
        const problems = document.getElementById("problems");
        new MutationObserver(() => window.said.push(problems.textContent))
          .observe(problems, { childList: true });"""
    )
    held: list[Route] = []
    page.route("**/api/history?*", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/history?*"):
        progressed(home, "one", 410, loss=0.5)
    page.locator("#compare").get_by_label("Show one in the charts").uncheck()
    chooser = page.locator("#training-charts .chooser")
    chooser.locator("summary").click()
    chooser.get_by_label("Each rank's own time per step").check()  # it is requested, too
    held.pop().continue_()
    legend = page.locator("figure", has=loss).locator(".legend li")
    expect(legend).to_have_text(["two"])
    with page.expect_response("**/api/runs?*"):  # polls go on
        pass
    assert not any(page.evaluate("window.said"))


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
