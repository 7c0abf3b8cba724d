"""The curves of runs in a real browser: values, axes, smoothing, zoom, metrics, and line styles."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FloatRect, Locator, Page, expect

from tests.patience import until
from tests.support.dashboard.home import write_run
from tests.support.serving.browser import fits

BATCH = 32
SPIKE = 4e5
RUNS = [f"run-{number:02}" for number in range(17)]


def write(
    home: Path, name: str, records: list[dict[str, Any]], seconds_per_step: float = 1
) -> None:
    """A finished run with this log; its losses are those of the records."""
    log = write_run(home, name, points=1)
    first = {"step": 0, "event": "started", "time": 0.0, "config": {"batch_size": BATCH}}
    lines = [first, *({"time": each["step"] * seconds_per_step, **each} for each in records)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def progress(step: int, loss: float, **others: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "samples_per_second": 64.0, **others}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that are chosen by the tests; the newest four are selected at first."""
    home = tmp_path_factory.mktemp("home")
    for number, name in enumerate(RUNS):
        write(home, name, [progress(step, 1 + number / 10) for step in (10, 20, 30)])
    spiky = [progress(step, 2 + math.sin(step) / 10) for step in range(1, 101)]
    spiky[49]["loss"] = SPIKE
    write(home, "spiky", spiky)
    write(home, "single", [progress(40, 1.5)])
    # A language model and an image classifier: other rates, other evaluations.
    words = [
        progress(step, 100 / step, tokens_per_second=640.0, learning_rate=step / 1000)
        for step in range(10, 101, 10)
    ]
    write(home, "words", [*words, {"step": 100, "eval_loss": 2.0, "perplexity": 7.4}], 2)
    images = [progress(step, 50 / step) for step in range(10, 101, 10)]
    evaluations = [{"step": step, "eval_loss": 1.0, "accuracy": step / 125} for step in (50, 100)]
    write(home, "images", sorted([*images, *evaluations], key=lambda each: int(each["step"])))
    return home


def opened(page: Page, dashboard: str, *names: str) -> None:
    """Open the Training tab with exactly these runs."""
    page.goto(f"{dashboard}/#training")
    boxes = page.locator("#compare input")
    expect(boxes).to_have_count(len(RUNS) + 4)
    for box in boxes.all():
        if box.is_checked():
            box.uncheck()
    for name in names:
        page.locator("#compare").get_by_label(f"Show {name} in the charts").check()
    legend = figure(page, "loss").locator(".legend li")
    expect(legend).to_have_count(len(names))
    expect(page.locator("#plot-training-charts-loss canvas")).to_be_visible()
    # It names the first of many runs.
    expect(page.get_by_role("img", name=f"{names[0]}: ").first).to_be_visible()


def figure(page: Page, metric: str, board: str = "training") -> Locator:
    return page.locator("figure", has=page.locator(f"#plot-{board}-charts-{metric}"))


def scale(page: Page, metric: str, axis: str) -> list[float]:
    """The smallest and the largest value on an axis."""
    plot = f"document.getElementById('plot-training-charts-{metric}').uplot"
    found = page.evaluate(f"[{plot}.scales.{axis}.min, {plot}.scales.{axis}.max]")
    return [float(value) for value in found]


def shown(page: Page, metric: str, x: list[float]) -> None:
    """Wait until a chart shows this part of its x axis."""
    until(lambda: scale(page, metric, "x") == x, f"x from {x[0]} to {x[1]}")


def moved(page: Page, metric: str, before: list[float], why: str) -> None:
    until(lambda: scale(page, metric, "x") != before, why)


def controls(page: Page) -> Locator:
    return page.locator("#training-charts .toolbar")


def at_step(page: Page, metric: str, step: float) -> tuple[Locator, FloatRect, float]:
    """The area of a plot, its box, and the place of a step in it, in pixels."""
    over = figure(page, metric).locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    low, high = scale(page, metric, "x")
    return over, box, (step - low) / (high - low) * box["width"]


def point(page: Page, metric: str, step: float) -> Locator:
    """Move the pointer over a step; returns what is shown there."""
    over, box, left = at_step(page, metric, step)
    over.hover(position={"x": left, "y": box["height"] / 2})
    return figure(page, metric).locator(".tip")


def test_the_values_of_all_runs_are_shown_at_the_pointer_in_every_chart(
    dashboard: str, page: Page
) -> None:
    opened(page, dashboard, "words", "images")
    tip = point(page, "loss", 50.4)
    expect(tip).to_contain_text("Step: 50")
    expect(tip.locator("div")).to_have_text(["words: 2", "images: 1"])
    expect(figure(page, "accuracy").locator(".tip")).to_contain_text("images: 40%")
    page.mouse.move(1, 1)
    expect(tip).to_be_hidden()


def test_values_are_read_and_charts_zoomed_by_keyboard(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "words", "images")
    plot = page.locator("#plot-training-charts-loss")
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    said = figure(page, "loss").locator("[aria-live]")
    expect(said).to_have_text("Step: 20; words: 5; images: 2.5")
    whole = scale(page, "loss", "x")
    page.keyboard.press("+")
    until(lambda: scale(page, "loss", "x")[1] < whole[1])
    shown(page, "accuracy", scale(page, "loss", "x"))
    page.keyboard.press("Escape")
    shown(page, "loss", whole)
    for name in ("Zoom in", "Later", "Zoom out", "Zoom in", "Earlier"):
        before = scale(page, "loss", "x")
        controls(page).get_by_role("button", name=name).click()
        moved(page, "loss", before, name)
    controls(page).get_by_role("button", name="Reset zoom").click()
    shown(page, "loss", whole)


def test_a_part_is_enlarged_by_dragging_until_a_double_click(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "words")
    whole = scale(page, "loss", "x")
    over, box, left = at_step(page, "loss", 30)
    _, _, right = at_step(page, "loss", 60)
    page.mouse.move(box["x"] + left, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + right, box["y"] + 60, steps=3)
    page.mouse.up()
    until(lambda: scale(page, "loss", "x") == pytest.approx([30, 60], abs=1))
    # y follows what is in view: 100 / 20 to 100 / 70, the points beside the part included.
    assert scale(page, "loss", "y")[1] < 5.5
    over.dblclick()
    shown(page, "loss", whole)


def test_axes_are_logarithmic_and_say_what_has_no_place(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "words", "images")
    controls(page).get_by_label("Log y").check()
    distribution = "document.getElementById('plot-training-charts-loss').uplot.scales.y.distr"
    until(lambda: page.evaluate(distribution) == 3)
    low, high = scale(page, "loss", "y")
    assert 0 < low < 0.5 < 10 < high < 20
    controls(page).get_by_label("Log x").check()
    until(lambda: page.evaluate(distribution.replace("y.distr", "x.distr")) == 3)
    expect(point(page, "loss", 10)).to_be_visible()
    controls(page).get_by_label("Over").select_option("seconds")
    controls(page).get_by_label("Log x").uncheck()
    controls(page).get_by_label("Log y").uncheck()
    shown(page, "loss", [10, 200])


def test_curves_lie_over_time_tokens_and_samples(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "words", "images")
    axis = controls(page).get_by_label("Over")
    axis.select_option("samples")
    shown(page, "loss", [10 * BATCH, 100 * BATCH])
    axis.select_option("seconds")
    shown(page, "loss", [10, 200])
    expect(point(page, "loss", 40)).to_contain_text("Time since the start: 40 s")
    axis.select_option("tokens")
    shown(page, "loss", [10 * BATCH * 10, 100 * BATCH * 10])
    expect(figure(page, "loss")).to_contain_text(
        "Not drawn, because the number of tokens at each step is unknown: images."
    )


def test_smoothing_keeps_the_raw_curve_behind(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "spiky")
    columns = "document.getElementById('plot-training-charts-loss').uplot.data.length"
    controls(page).get_by_label("Smoothing").fill("0.9")
    until(lambda: page.evaluate(columns) == 3)
    tip = point(page, "loss", 80)
    expect(tip).to_contain_text("raw")
    drawn = page.evaluate(
        "document.getElementById('plot-training-charts-loss').uplot.data.map((each) =>"
        " Math.max(...each) - Math.min(...each))"
    )
    assert drawn[1] > SPIKE / 2  # the raw one
    assert drawn[2] < 0.2  # the smoothed one: an outlier that is hidden has no part in it
    controls(page).get_by_label("Smoothing").fill("0")
    until(lambda: page.evaluate(columns) == 2)
    tip = point(page, "loss", 80)
    expect(tip).to_be_visible()
    expect(tip).not_to_contain_text("raw")


def test_a_single_spike_does_not_flatten_the_rest_and_is_said(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "spiky")
    low, high = scale(page, "loss", "y")
    assert 1.5 < low < 2 < high < 2.5
    expect(figure(page, "loss")).to_contain_text("1 outlier beyond the axis")
    outliers = controls(page).get_by_label("Outliers")
    outliers.select_option("show")
    until(lambda: scale(page, "loss", "y")[1] > SPIKE)
    expect(figure(page, "loss")).not_to_contain_text("outlier beyond")
    outliers.select_option("ignore")
    until(lambda: scale(page, "loss", "y")[1] < 2.5)


def test_a_single_point_is_drawn(dashboard: str, page: Page) -> None:
    opened(page, dashboard, "single")
    coloured = page.evaluate(
        """() => {
          const { canvas } = document.getElementById("plot-training-charts-loss").uplot.ctx;
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) {
            const colours = data.slice(i, i + 3); // of axes and grid they are nearly the same
            if (data[i + 3] > 200 && Math.max(...colours) - Math.min(...colours) > 60) count += 1;
          }
          return count;
        }"""
    )
    assert 30 < coloured < 300
    expect(point(page, "loss", 40)).to_contain_text("single: 1.5")


def test_any_metric_is_chosen_and_evaluations_are_shown_by_default(
    dashboard: str, page: Page
) -> None:
    opened(page, dashboard, "words", "images")
    for metric in ("eval_loss", "accuracy", "perplexity", "learning_rate"):
        expect(figure(page, metric)).to_be_visible()
    page.get_by_role("tab", name="Performance").click()
    for metric in ("accuracy", "perplexity", "tokens_per_second", "samples_per_second"):
        expect(figure(page, metric, "performance")).to_be_visible()
    rates = figure(page, "samples_per_second", "performance").locator(".legend li")
    expect(rates).to_have_text(["images", "words"])
    chooser = page.locator("#performance-charts .chooser")
    expect(chooser.locator("summary")).to_have_text("Metrics: 6 of 8")
    chooser.locator("summary").click()
    chooser.get_by_label("Learning rate").check()
    expect(figure(page, "learning_rate", "performance")).to_be_visible()
    chooser.get_by_label("Accuracy in evaluation").uncheck()
    expect(figure(page, "accuracy", "performance")).to_be_hidden()
    expect(chooser.locator("summary")).to_have_text("Metrics: 6 of 8")


def test_seventeen_runs_have_styles_of_their_own_everywhere(dashboard: str, page: Page) -> None:
    opened(page, dashboard, *RUNS)
    page.goto(f"{page.url}&rows=25")  # the table's, on another tab
    expect(page.locator("#runs tbody tr")).to_have_count(len(RUNS) + 4)
    look = "(all) => all.map((one) => one.outerHTML)"
    legend = figure(page, "loss").locator(".legend svg path").evaluate_all(look)
    assert len(set(legend)) == len(RUNS)
    ticks = page.locator("#compare .swatch svg path").evaluate_all(look)
    rows = page.locator("#runs .swatch svg path").evaluate_all(look)
    assert sorted(legend) == sorted(ticks) == sorted(rows)
    kept = (
        page.locator("#compare label", has_text="run-16").locator(".swatch path").evaluate_all(look)
    )
    page.locator("#compare").get_by_label("Show run-00 in the charts").uncheck()
    page.reload()
    again = page.locator("#compare").get_by_label("Show run-16 in the charts")
    again.check()
    swatch = page.locator("#compare label", has_text="run-16").locator(".swatch path")
    expect(swatch).to_have_count(1)
    assert swatch.evaluate_all(look) == kept


def test_charts_fit_a_phone_and_have_tables(dashboard: str, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    opened(page, dashboard, "words", "images")
    page.locator("#training-charts .chooser summary").click()
    assert fits(page)
    figure(page, "loss").get_by_text("Show as table").click()
    table = page.get_by_role("table", name="Training loss")
    expect(table.get_by_role("row", name="words 50 2")).to_be_visible()


def test_lines_that_are_not_records_are_reported(dashboard: str, home: Path, page: Page) -> None:
    with (home / "runs" / "images" / "data" / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    opened(page, dashboard, "images")
    expect(page.locator("#problems")).to_contain_text(
        "images: line 14 of metrics.jsonl is left out"
    )


def test_new_points_are_added_without_sending_the_old_ones(
    dashboard: str, home: Path, page: Page
) -> None:
    opened(page, dashboard, "run-03")
    sizes: list[int] = []
    page.on(
        "response",
        lambda answer: sizes.append(len(answer.body())) if "/api/history" in answer.url else None,
    )
    directory = home / "runs" / "run-03"
    with (directory / "data" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(progress(50, 0.25) | {"time": 50.0}) + "\n")
    run = json.loads((directory / "run.json").read_text())
    run["status"]["step"] = 50
    (directory / "new.json").write_text(json.dumps(run))
    (directory / "new.json").replace(directory / "run.json")
    expect(page.get_by_role("img", name="run-03: 0.25 at 50").first).to_be_visible()
    figure(page, "loss").get_by_text("Show as table").click()
    steps = page.get_by_role("table", name="Training loss").locator("td:nth-child(2)")
    expect(steps).to_have_text(["10", "20", "30", "50"])
    assert len(sizes) == 1


def test_outliers_are_those_far_from_nearly_all_points(dashboard: str, page: Page) -> None:
    """What `curve_math.js` computes, without a chart."""
    page.goto(dashboard)

    def shown_range(values: list[float], outliers: str) -> dict[str, float]:
        script = (
            f"import('/static/curve_math.js').then((m) => m.shownRange({values}, '{outliers}'))"
        )
        return dict(page.evaluate(script))

    descent = [11 / step for step in range(1, 201)]  # the first points are no mistake
    assert shown_range(descent, "auto") == {"low": 11 / 200, "high": 11, "outside": 0}
    assert shown_range(descent, "ignore")["outside"] > 0
    assert shown_range([1.0] * 5 + [1e9], "auto")["high"] == 1e9  # too few to tell
    constant = [0.5] * 30 + [1e6]
    assert shown_range(constant, "auto") == {"low": 0.5, "high": 0.5, "outside": 1}
    assert shown_range(constant, "show")["outside"] == 0
    average = "import('/static/curve_math.js').then((m) => m.smooth([4, 4, 8, 100], 0.5, [0, 10]))"
    assert page.evaluate(average) == pytest.approx([4, 4, 4 + 4 * 0.5 / 0.875, 4 + 4 * 0.5 / 0.875])


def test_how_curves_are_shown_is_kept_in_parameters(dashboard: str, page: Page) -> None:
    """What an address holds of `view.js`; anybody may have written it."""
    page.goto(dashboard)
    script = """async (parameters) => {
      const { change, restoreView, viewParameters } = await import("/static/view.js");
      change({ range: [1, 2], logX: true });
      restoreView(parameters);
      return viewParameters();
    }"""
    chosen = [["x", "tokens"], ["logY", "true"], ["smoothing", "0.5"], ["range", "100-to-2e3"]]
    kept = [["x", "tokens"], ["logY", "true"], ["smoothing", "0.5"], ["range", "100-to-2000"]]
    assert page.evaluate(script, chosen) == kept
    odd = [["x", "__proto__"], ["outliers", "?"], ["smoothing", "7"], ["range", "2-to-1"]]
    assert page.evaluate(script, odd) == []


def test_how_curves_are_shown_is_in_the_address(dashboard: str, page: Page) -> None:
    def over(shown: Page, board: str = "training") -> Locator:
        return shown.locator(f"#{board}-charts .toolbar").get_by_label("Over")

    opened(page, dashboard, "words")
    over(page).select_option("tokens")
    controls(page).get_by_label("Log y").check()
    expect(page).to_have_url(re.compile(r"#training\?.*&x=tokens&logY=true$"))
    other = page.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(page.url)
    expect(over(other)).to_have_value("tokens")
    expect(controls(other).get_by_label("Log y")).to_be_checked()
    other.close()

    page.get_by_role("tab", name="Performance").click()
    expect(over(page, "performance")).to_have_value("tokens")
    over(page, "performance").select_option("step")
    expect(page).not_to_have_url(re.compile("x=tokens"))
    page.go_back()
    expect(over(page)).to_have_value("tokens")
