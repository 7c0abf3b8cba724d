"""What the page asks for, draws and stores: no more than has changed, nothing that is outdated."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.patience import until
from tests.support.dashboard.home import write_run, write_study
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
    (write_run(home, "broken").parent / "metrics.jsonl").unlink()
    (home / "runs" / "broken" / "data" / "metrics.jsonl").mkdir()
    first = {"step": 0, "event": "started", "time": 0.0, "config": {"batch_size": 32}}
    log = write_run(home, "sized")
    log.write_text(json.dumps(first) + "\n" + log.read_text())
    write_study(home)
    return home


@pytest.fixture
def quiet(home: Path) -> Iterator[str]:
    """A dashboard whose page polls once: what it asks for later is for another reason."""
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 3600})
    with running(create_dashboard_app(settings)) as asked:
        yield str(asked.base_url)


def evaluate(page: Page, expression: str) -> Any:
    """The value of an expression about `u`, what draws the losses of the Training tab."""
    plot = "document.getElementById('plot-training-charts-loss')?.uplot"
    return page.evaluate(f"(({{ u }}) => {expression})({{ u: {plot} }})")


def controls(page: Page) -> Locator:
    return page.locator("#training-charts .toolbar")


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
    chooser = controls(page).locator(".chooser")
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


def test_what_needs_no_data_requests_none(quiet: str, page: Page) -> None:
    """Also while a run can't be read, which a poll would retry."""
    page.goto(f"{quiet}/#training?select=local/default/sized&select=local/default/broken")
    expect(page.locator("#problems")).to_contain_text("the history of broken can't be read")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    controls(page).get_by_label("Smoothing").fill("0.5")
    until(lambda: evaluate(page, "u.series.length") == 3)
    controls(page).get_by_label("Over").select_option("seconds")
    until(lambda: evaluate(page, "u.axes[0].label").startswith("Time"))
    controls(page).get_by_label("Outliers").select_option("show")
    controls(page).get_by_label("Log y").check()
    until(lambda: evaluate(page, "u.scales.y.distr") == 3)
    page.locator("#training-charts .u-over").first.hover()
    expect(page.locator("#training-charts .tip").first).to_be_visible()
    chooser = controls(page).locator(".chooser")
    chooser.locator("summary").click()
    for wanted in (False, True):
        chooser.get_by_label("Learning rate").set_checked(wanted)
        rate = page.locator("#plot-training-charts-learning_rate")
        expect(rate).to_be_visible(visible=wanted)
    light = evaluate(page, "u.axes[0].stroke()")
    page.emulate_media(color_scheme="dark")
    until(lambda: evaluate(page, "u.axes[0].stroke()") != light)
    page.set_viewport_size({"width": 500, "height": 700})
    until(lambda: evaluate(page, "u.width") < 500)
    controls(page).get_by_role("button", name="Zoom in").click()
    until(lambda: evaluate(page, "u.scales.x.min") > 1)
    assert not asked
    with page.expect_request("**/api/history?*axis%3Asamples*"):
        controls(page).get_by_label("Over").select_option("samples")


def test_a_broken_line_of_one_run_is_no_reason_to_request_others_again(
    dashboard: str, home: Path, page: Page
) -> None:
    with write_run(home, "cut").open("a") as file:
        file.write("{\n")
    page.goto(f"{dashboard}/#training?select=local/default/cut&select=local/default/one")
    expect(page.locator("#problems")).to_contain_text("cut: line 44 of metrics.jsonl is left out")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(3):
        with page.expect_response("**/api/runs?*"):
            pass
    assert not [url for url in asked if "/api/history" in url]
    expect(page.locator("#problems")).to_contain_text("cut: line 44 of metrics.jsonl is left out")


def test_charts_stay_while_they_are_smoothed_and_zoomed_once_a_frame(
    quiet: str, page: Page
) -> None:
    page.goto(f"{quiet}/#training?select=local/default/one&smoothing=0.1")
    until(lambda: page.evaluate("!!document.querySelector('#plot-training-charts-loss .uplot')"))
    drawn = page.evaluate(
        """async () => {
          const { uplot } = document.getElementById("plot-training-charts-loss");
          let drawn = 0;
          const { setData } = uplot;
          uplot.setData = (...data) => {
            drawn += 1;
            setData(...data);
          };
          const slider = document.querySelector("#training-charts input[type=range]");
          for (const value of [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
          }
          for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
          uplot.isFirst = true;
          return drawn;
        }"""
    )
    assert drawn == 1
    smoothed = evaluate(page, "u.data[2][1]")
    controls(page).get_by_label("Smoothing").fill("0.9")
    until(lambda: evaluate(page, "u.data[2][1]") != smoothed)
    whole = evaluate(page, "[u.scales.x.min, u.scales.x.max, u.scales.y.max]")
    controls(page).get_by_role("button", name="Zoom in").click()
    controls(page).get_by_role("button", name="Later").click()
    until(lambda: evaluate(page, "u.scales.x.min") > 150)
    in_view = "u.data[2].filter((_, i) => u.data[0][i] >= u.scales.x.min)"
    assert evaluate(page, f"Math.max(...{in_view}) < u.scales.y.max")  # the smoothed line, too
    until(lambda: evaluate(page, "u.scales.y.max") < whole[2])  # y follows
    controls(page).get_by_role("button", name="Reset zoom").click()
    until(lambda: evaluate(page, "[u.scales.x.min, u.scales.x.max, u.scales.y.max]") == whole)
    assert evaluate(page, "u.isFirst")


def test_a_zoom_is_of_what_is_in_view_in_its_own_unit(dashboard: str, page: Page) -> None:
    """Charts of another tab were drawn over steps, and of more runs."""
    both = "select=local/default/sized&select=local/default/one"
    page.goto(f"{dashboard}/#performance?{both}")
    expect(page.locator("#plot-performance-charts-loss canvas")).to_be_visible()
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#plot-training-charts-loss canvas")).to_be_visible()
    controls(page).get_by_label("Over").select_option("samples")
    until(lambda: evaluate(page, "[u.scales.x.min, u.scales.x.max]") == [320, 12800])
    controls(page).get_by_role("button", name="Zoom in").click()
    until(lambda: evaluate(page, "[u.scales.x.min, u.scales.x.max]") == [3440, 9680])
    controls(page).get_by_label("Over").select_option("step")
    until(lambda: evaluate(page, "u.axes[0].label") == "Step")
    assert evaluate(page, "u.scales.x.min") == 10


def test_a_zoom_from_0_holds_on_a_logarithmic_axis(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#training?select=local/default/sized&range=0-to-200")
    until(lambda: evaluate(page, "u?.scales.x.min") == 0)
    controls(page).get_by_label("Log x").check()
    until(lambda: evaluate(page, "[u.scales.x.min, u.scales.x.max]") == [10, 200])
    labels = evaluate(page, "u.axes[0]._values.filter(Boolean)")
    assert labels == ["10", "20", "50", "100", "200"]  # not only the powers of 10


def test_a_chart_that_was_hidden_is_shown_as_the_view_is_now(dashboard: str, page: Page) -> None:
    """A logarithmic axis from 0, where it was drawn from, would have endless marks."""
    page.goto(dashboard)
    page.evaluate("""async () => {
      const { change } = await import("/static/view.js");
      const { drawCurves } = await import("/static/curve_chart.js");
      document.body.prepend(Object.assign(document.createElement("div"), { id: "own" }));
      const style = { colour: 1, dash: [] };
      const lines = [{ name: "one", x: [0, 1, 2, 3], y: [1, 5, 3, 2], style }];
      const spec = { id: "own", title: "Own", x: "", y: "", showX: String, showY: String, lines };
      const element = drawCurves("own", spec);
      const shown = () => element.querySelector(".plot").uplot.scales.x.min;
      window.own = { change, shown, hide: (hidden) => { element.parentElement.hidden = hidden; } };
    }""")
    until(lambda: page.evaluate("own.shown()") == 0)
    page.evaluate("own.hide(true)")
    page.evaluate("own.change({ logX: true })")
    page.evaluate("own.hide(false)")
    until(lambda: page.evaluate("own.shown()") == 1)


@pytest.mark.parametrize(
    ("tab", "asked", "shown"),
    [("cost", "costs", "#costs tbody"), ("scaling", "projection", "#scaling-tiles")],
)
def test_an_answer_to_an_earlier_question_is_ignored(
    quiet: str, page: Page, tab: str, asked: str, shown: str
) -> None:
    page.goto(f"{quiet}/#{tab}")
    expect(page.locator(shown)).not_to_be_empty()
    before = page.locator(shown).inner_text()
    held: list[Route] = []
    page.route(f"**/api/{asked}?*", lambda route: held.append(route), times=1)
    budget = page.locator(f"#{tab}-form").get_by_label("Budget")
    with page.expect_request(f"**/api/{asked}?*"):
        budget.fill("5")
    budget.fill("123456")
    expect(page.locator(shown)).not_to_have_text(before, use_inner_text=True)
    newest = page.locator(shown).inner_text()
    with page.expect_response(f"**/api/{asked}?*budget=5000000*"):
        held.pop().continue_()
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.locator(shown).inner_text() == newest


def test_charts_are_not_said_to_be_empty_before_the_first_answer(quiet: str, page: Page) -> None:
    held: list[Route] = []
    page.route("**/api/history?*", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/history?*"):
        page.goto(f"{quiet}/#performance?select=local/default/one&smoothing=0.5")
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#performance-charts > .empty")).to_be_hidden()
    axis = page.locator("#performance-charts .toolbar").get_by_label("Over")
    axis.select_option("seconds")
    held.pop().continue_()
    label = "document.getElementById('plot-performance-charts-loss')?.uplot?.axes[0].label"
    until(lambda: page.evaluate(label) == "Time since the start")
