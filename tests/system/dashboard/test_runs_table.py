"""The table of 1,000 runs in a real browser: search, filters, sorting, selection, shared links."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.dashboard.home import write_run
from tests.support.serving.browser import PHONE, fits
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings

RUNS = 1000
RECIPES = ("char-gpt", "text-classification")


def write(home: Path, number: int, **status: Any) -> None:
    """Run `number`: every second one classifies, every tenth has failed; the highest is newest."""
    name = f"run-{number:04d}"
    month, day, minute = 1 + number // 600, 1 + number // 60 % 10, number % 60
    status = {
        "phase": "Failed" if number % 10 == 0 else "Succeeded",
        "startTime": f"2026-{month:02d}-{day:02d}T12:{minute:02d}:00Z",
        "loss": (number * 37 % RUNS) / 100,
        **status,
    }
    write_run(home, name, points=1, **status)
    path = home / "runs" / name / "run.json"
    run = json.loads(path.read_text())
    run["spec"]["recipe"] = RECIPES[number % 2]
    run["metadata"]["labels"] = {"team": "vision" if number < 3 else "text"}
    path.write_text(json.dumps(run))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for number in range(RUNS):
        write(home, number)
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[str]:
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 0.3})
    with running(create_dashboard_app(settings)) as client:
        yield str(client.base_url)


def names(page: Page) -> list[str]:
    return page.locator("#runs tbody a.name").all_text_contents()


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name, exact=True)


def found(page: Page, text: str) -> None:
    expect(page.locator("#runs-found")).to_have_text(text)


def test_search_filters_and_sorting_are_kept_in_a_link_that_can_be_shared(
    dashboard: str, page: Page
) -> None:
    page.goto(dashboard)
    found(page, "1000 runs")
    assert len(names(page)) == 10  # not a thousand rows
    assert names(page)[0] == "run-0999"
    expect(page.locator("#page-of-runs")).to_have_text("Page 1 of 100")

    page.get_by_label("Search").fill("team=vision")  # a label
    found(page, "3 of 1000 runs")
    page.get_by_label("Search").fill("CLASSIFICATION run-00")  # a recipe and a name
    found(page, "50 of 1000 runs")
    choice(page, "Phase").select_option("Failed")
    expect(page.locator("#no-match")).to_have_text("No run matches the search and the filters.")
    page.get_by_role("button", name="Clear search and filters").click()
    found(page, "1000 runs")

    choice(page, "Recipe").select_option("char-gpt")
    choice(page, "Phase").select_option("Failed")
    page.get_by_label("Started up to").fill("2026-01-02")
    found(page, "12 of 1000 runs")
    by_loss = page.get_by_role("button", name="Loss", exact=True)
    expect(by_loss).to_have_accessible_description("Sort in ascending order")
    by_loss.click()
    expect(by_loss).to_have_accessible_description("Sort in descending order")
    header = page.get_by_role("columnheader", name="Loss", exact=True)
    expect(header).to_have_attribute("aria-sort", "ascending")
    lowest = sorted(range(0, 120, 10), key=lambda number: number * 37 % RUNS)
    assert names(page) == [f"run-{number:04d}" for number in lowest[:10]]
    page.get_by_role("button", name="Next").click()
    assert names(page) == [f"run-{number:04d}" for number in lowest[10:]]
    page.get_by_role("checkbox", name=f"Show run-{lowest[-1]:04d} in").check()

    link = page.url
    other = page.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(link)
    found(other, "12 of 1000 runs")
    assert names(other) == [f"run-{number:04d}" for number in lowest[10:]]
    expect(other.get_by_role("checkbox", name=f"Show run-{lowest[-1]:04d} in")).to_be_checked()
    expect(choice(other, "Recipe")).to_have_value("char-gpt")
    other.close()

    page.go_back()  # from the second page of rows
    assert names(page) == [f"run-{number:04d}" for number in lowest[:10]]
    page.go_back()  # from the order by loss
    expect(page.locator("#runs [aria-sort]")).to_have_text("Started")
    page.go_forward()
    expect(header).to_have_attribute("aria-sort", "ascending")


def test_the_selection_survives_search_and_tabs(dashboard: str, page: Page) -> None:
    page.goto(dashboard)
    expect(page.locator("#runs-selected")).to_have_text("4 selected for the charts")
    page.get_by_role("button", name="Clear selection").click()
    page.get_by_label("Search").fill("run-0500")
    page.get_by_role("checkbox", name="Show run-0500 in the charts").check()
    page.get_by_label("Search").fill("run-0600")
    expect(page.get_by_role("checkbox", name="Show run-0500 in the charts")).to_have_count(0)
    page.get_by_role("checkbox", name="Show run-0600 in the charts").check()
    expect(page.locator("#runs-selected")).to_have_text("2 selected for the charts")
    page.get_by_role("tab", name="Training").click()
    page.go_back()
    expect(page.get_by_role("tabpanel", name="Performance")).to_be_visible()
    expect(page.locator("#runs-selected")).to_have_text("2 selected for the charts")
    assert "select=local/default/run-0500&select=local/default/run-0600" in page.url
    page.reload()
    expect(page.locator("#runs-selected")).to_have_text("2 selected for the charts")


def test_at_most_50_runs_are_selected(dashboard: str, page: Page) -> None:
    chosen = "&".join(f"select=local/default/run-{number:04d}" for number in range(60))
    page.goto(f"{dashboard}/#performance?search=run-0999&{chosen}")
    count = page.locator("#runs-selected")
    expect(count).to_have_text("50 selected for the charts, the most that are possible")
    box = page.get_by_role("checkbox", name="Show run-0999 in the charts")
    box.click()
    expect(box).not_to_be_checked()
    page.get_by_role("button", name="Clear selection").click()
    box.click()
    expect(count).to_have_text("1 selected for the charts")
    expect(page.locator("#problems")).to_be_hidden()  # the server refuses no request


def test_polls_cost_little_and_keep_the_focus(dashboard: str, home: Path, page: Page) -> None:
    page.goto(f"{dashboard}/#performance?sort=loss&select=")
    found(page, "1000 runs")
    box = page.get_by_role("checkbox", name="Show run-0000 in the charts")  # the lowest loss
    box.focus()
    polls = page.expect_response(lambda answer: "/api/runs?since=" in answer.url)
    with polls as unchanged:
        pass
    assert len(unchanged.value.body()) < 200
    write(home, 500, loss=-1.0)  # now the lowest: the focused row moves
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0500")
    expect(box).to_be_focused()
    write(home, 500)
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0000")
    expect(box).to_be_focused()


def test_runs_are_sorted_once_and_not_at_all_when_one_progresses(
    dashboard: str, home: Path, page: Page
) -> None:
    page.add_init_script(
        """window.sorted = 0;
        const { sort } = Array.prototype;
        Array.prototype.sort = function (...how) {
          if (this.length >= 1000) window.sorted += 1;
          return sort.apply(this, how);
        };"""
    )
    page.goto(dashboard)
    found(page, "1000 runs")
    assert page.evaluate("window.sorted") == 1
    write(home, 999, loss=0.125)
    expect(page.locator("#runs tbody tr").first).to_contain_text("0.125")
    assert page.evaluate("window.sorted") == 1
    write(home, 999)
    page.goto(f"{dashboard}/#performance?sort=loss")
    page.reload()
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0000")
    before = page.evaluate("window.sorted")
    write(home, 500, loss=-1.0)
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0500")
    assert page.evaluate("window.sorted") == before + 1  # by the column
    write(home, 500)
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0000")


def test_the_table_works_by_keyboard_and_on_a_phone(dashboard: str, page: Page) -> None:
    page.goto(dashboard)
    found(page, "1000 runs")
    page.get_by_label("Search").focus()
    page.keyboard.type("run-0123")
    found(page, "1 of 1000 runs")
    page.get_by_role("button", name="Run", exact=True).focus()
    page.keyboard.press("Enter")
    header = page.get_by_role("columnheader", name="Run", exact=True)
    expect(header).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("checkbox", name="Show run-0123 in the charts").focus()
    page.keyboard.press("Space")
    expect(page.locator("#runs-selected")).to_have_text("5 selected for the charts")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="run-0123")).to_be_focused()

    page.set_viewport_size(PHONE)
    assert fits(page)
    page.get_by_role("button", name="Clear search and filters").click()
    # The heads are out of sight, and so must their buttons be: this takes their place.
    expect(page.get_by_role("button", name="Loss", exact=True)).to_have_count(0)
    choice(page, "Sort by").select_option("Loss, descending")
    expect(page.locator("#runs tbody a.name").first).to_have_text("run-0027")
