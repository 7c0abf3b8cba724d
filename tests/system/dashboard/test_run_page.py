"""The page of a run in a real browser: what it tells, links to it, a path prefix, hostile text."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from starlette.types import Receive, Scope, Send

from tests.support.dashboard.home import driven, write_model, write_run
from tests.support.serving.browser import PHONE, fits
from tests.support.serving.servers import running
from trainyard_api.checkpoint import step_name
from trainyard_api.scores import TaskScores
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings
from trainyard_storage.scores import add_scores

HOSTILE = "<img src=x onerror=alert(1)>"
STARTED = "2026-01-01T00:00:05Z"
FAILED = {
    "number": 1,
    "startTime": STARTED,
    "endTime": "2026-01-01T00:20:05Z",
    "outcome": "Failed",
    "reason": "UserException",
    "message": f"rank 3 on bard-1-1: ValueError: {HOSTILE}",
    "exitCode": 1,
}
RESUMED = {
    "number": 2,
    "startTime": "2026-01-01T00:20:35Z",
    "resumedFromStep": 200,
    "changed": ["config.batch_size: 128 -> 64"],
}
PREFIX = "/user/me/proxy/8050"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was resumed and trains now, and one that is done."""
    home = tmp_path_factory.mktemp("home")
    write_run(home, "done")
    status: dict[str, Any] = {"attempt": 2, "attempts": [FAILED, RESUMED], "message": HOSTILE}
    history = write_run(home, "bard", phase="Running", **status)
    evaluation = {"step": 500, "eval_loss": 1.25, "accuracy": 0.875}
    with history.open("a") as file:
        file.write(json.dumps(evaluation) + '\n{"step": 510, "lo\n')
    directory = home / "runs" / "bard"
    (directory / "logs").mkdir()
    for name in ("1-0", "2-0"):
        (directory / "logs" / f"{name}.log").write_text(f"output of {name} {HOSTILE}\n")
    digest = write_model(directory / "data", 400, {"eval_loss": 1.5})
    scores = TaskScores(
        metrics={"acc": 0.75}, errors={"acc": 0.021}, samples=1319, time=datetime.now(UTC)
    )
    for step, scored in ((400, digest), (300, "sha256:gone")):
        model = directory / "data" / "models" / step_name(step)
        add_scores(model, step, scored, "lm-eval 0.4", {HOSTILE: scores})
    event = {"time": STARTED, "type": "Normal", "reason": "AttemptStarted", "message": HOSTILE}
    (directory / "events.jsonl").write_text(json.dumps(event) + "\n")
    return home


@pytest.fixture(scope="module")
def app(home: Path) -> Iterator[FastAPI]:
    settings = DashboardSettings.model_validate({"home": str(home), "poll_seconds": 0.3})
    with driven(home, "bard"):
        yield create_dashboard_app(settings)


@pytest.fixture(scope="module")
def dashboard(app: FastAPI) -> Iterator[str]:
    with running(app) as client:
        yield str(client.base_url)


def test_a_runs_page_tells_what_is_known_of_it(dashboard: str, home: Path, page: Page) -> None:
    page.goto(dashboard)
    page.get_by_role("link", name="bard").click()
    expect(page).to_have_url(f"{dashboard}/#run?id=local/default/bard")
    expect(page).to_have_title("bard: Trainyard")
    expect(page.get_by_role("heading", name="bard")).to_be_focused()
    attempts = page.get_by_role("table", name="Attempts")
    resumed = attempts.get_by_role("row").nth(1)
    for text in ("Active", "from 200", "config.batch_size: 128 -> 64"):
        expect(resumed).to_contain_text(text)
    failed = attempts.get_by_role("row").nth(2)
    for text in ("Failed", "20 min", f"rank 3 on bard-1-1: ValueError: {HOSTILE}", "exit code 1"):
        expect(failed).to_contain_text(text)
    newest = page.get_by_role("table", name="Evaluations").get_by_role("row").nth(1)
    expect(newest).to_contain_text("500")
    expect(newest).to_contain_text("0.875")
    scores = page.get_by_role("table", name="Scores").get_by_role("row")
    for row, model in ((1, "step 400"), (2, "step 300 no longer there")):
        cells = [HOSTILE, "acc", "0.75", "0.021", "1319", model]
        expect(scores.nth(row).locator("th, td")).to_have_text(cells)
    expect(page.locator("#run-models")).to_contain_text("eval_loss 1.5")
    expect(page.locator("#run-facts")).to_contain_text("trainyard serve bard")
    expect(page.locator("#run-settings pre")).to_have_text("recipe: char-gpt\n")
    expect(page.locator("#problems")).to_contain_text("of metrics.jsonl is left out")
    page.locator("#run-events summary").click()
    expect(page.get_by_role("table", name="Events")).to_contain_text(HOSTILE)
    assert page.locator("#run img").count() == 0

    output = page.locator("#run-log-text")
    expect(output).to_have_text(f"output of 2-0 {HOSTILE}\n")
    with (home / "runs" / "bard" / "logs" / "2-0.log").open("a") as file:
        file.write("a new line\n")
    expect(output).to_contain_text("a new line")
    expect(page.get_by_role("table", name="Events")).to_be_visible()  # a poll closes nothing
    page.get_by_role("combobox", name="Output of").select_option("attempt 1, node 0")
    expect(output).to_have_text(f"output of 1-0 {HOSTILE}\n")


def test_back_leads_to_the_table_as_it_was(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#performance?search=bard&select=local/default/done")
    page.get_by_role("link", name="bard").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="bard")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("link", name="bard")).to_be_focused()
    expect(page.get_by_label("Search")).to_have_value("bard")
    page.go_forward()
    page.get_by_role("button", name="Show in the charts").click()
    expect(page.get_by_role("checkbox", name="Show bard in the charts")).to_be_checked()
    expect(page.locator("#runs-selected")).to_have_text("1 selected for the charts")
    page.go_back()
    page.get_by_role("button", name="All runs").click()
    expect(page.get_by_label("Search")).to_have_value("bard")


def test_all_runs_leads_to_the_table_as_it_was(dashboard: str, page: Page) -> None:
    page.goto(dashboard)
    page.get_by_label("Search").fill("bard")
    expect(page).to_have_url(re.compile("search=bard"))
    page.get_by_role("link", name="bard").click()
    page.get_by_role("button", name="All runs").click()
    expect(page.get_by_role("link", name="bard")).to_be_focused()
    expect(page.get_by_label("Search")).to_have_value("bard")


def test_a_link_to_a_run_that_is_gone_says_so(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#run?id=local/default/nobody")
    said = "run local/default/nobody does not exist (any more)"
    expect(page.locator("#problems")).to_contain_text(said)
    page.get_by_role("tab", name="Performance").click()
    expect(page.get_by_role("link", name="bard")).to_be_visible()


def test_the_page_works_behind_a_path_prefix(app: FastAPI, page: Page) -> None:
    """As a proxy passes requests on: without the prefix, of which the server knows nothing."""
    outside: list[str] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{PREFIX}/"):
                outside.append(scope["path"])
            path = scope["path"].removeprefix(PREFIX)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    with running(proxy) as client:  # type: ignore[arg-type]
        page.goto(f"{client.base_url}{PREFIX}/#run?id=local/default/bard")
        expect(page.locator("#run-log-text")).to_contain_text("output of 2-0")
        page.get_by_role("button", name="All runs").click()
        expect(page.locator("#plot-performance-charts-loss canvas")).to_be_visible()
    assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(dashboard: str, page: Page, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{dashboard}/#run?id=local/default/bard")
    expect(page.locator("#run-log-text")).to_contain_text("output of 2-0")
    for size in ({"width": 1280, "height": 800}, PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        assert fits(page)
        violations = axe.run(page).response["violations"]
        serious = {one["id"] for one in violations if one["impact"] in ("serious", "critical")}
        assert not serious
