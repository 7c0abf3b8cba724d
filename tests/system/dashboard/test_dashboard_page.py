"""The dashboard in a real browser: every tab, the keyboard, small screens, dark mode."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.dashboard.home import driven, record, write_run, write_study
from tests.support.serving.browser import fits
from tests.support.serving.servers import running
from trainyard_agent.gpus import Gpu
from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer
from trainyard_agent.usage import RankUsage
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings

TABS = ("Performance", "Scaling", "Training", "Cost", "Demo")
CHARTS = (  # the last of each tab
    "performance-charts-rank_step_seconds",
    "speedup",
    "training-charts-grad_norm",
    "costs",
    None,
)
SMALL_PHONE = {"width": 360, "height": 740}
ATTEMPT = {"attempt": 1, "nodes": 1, "peakMemoryBytes": 3 << 30}
ODD_NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a running one, and one with a name that attempts HTML injection."""
    home = tmp_path_factory.mktemp("home")
    write_run(home, "done")
    write_run(home, "going", phase="Running", step=400, totalSteps=1000, etaSeconds=95, **ATTEMPT)
    write_run(home, ODD_NAME, message=ODD_NAME)
    write_study(home)
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path, client: httpx.Client) -> Iterator[str]:
    """The URL of a dashboard whose demo uses the tests' generate server."""
    settings = DashboardSettings.model_validate(
        {"home": str(home), "demo_url": str(client.base_url).rstrip("/"), "poll_seconds": 0.3}
    )
    with driven(home, "going"), agent(home), running(create_dashboard_app(settings)) as asked:
        yield str(asked.base_url)


@contextmanager
def agent(home: Path) -> Iterator[None]:
    """The agent of the run `going`, with so many ranks that not all of them are shown."""
    gpu = Gpu(0.97, 0.5, 70 << 30)
    usages = [RankUsage(rank, 1.0, (2 << 30) + rank, gpu) for rank in range(64)]
    usages[50] = RankUsage(50, 1.0, 2 << 30, gpu._replace(utilization=0.03))
    server = ReportServer(Report("going", 1), int, usages=lambda: usages)
    server.serve("127.0.0.1", 0)
    attempts = home / "runs" / "going" / "attempts"
    attempts.mkdir()
    (attempts / "1.json").write_text(json.dumps({"report": server.port}))
    yield
    server.close()


@pytest.fixture
def requests(page: Page) -> list[str]:
    """The URLs of all requests of the page."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url))
    return found


def drawn(page: Page, chart: str) -> None:
    expect(page.locator(f"#plot-{chart}").locator("canvas, svg").first).to_be_visible()


def test_runs_and_charts_are_updated_while_a_run_progresses(
    dashboard: str, home: Path, page: Page, requests: list[str]
) -> None:
    page.goto(dashboard)
    going = page.locator("#runs").get_by_role("row", name="going")
    for text in ("Running", "400 of 1000", "1.500", "1 min"):
        expect(going).to_contain_text(text)
    expect(page.get_by_role("columnheader", name="Time left")).to_contain_text("projected")
    expect(page.locator("#runs").get_by_role("row", name=ODD_NAME)).to_be_visible()
    for metric in ("loss", "eval_loss", "tokens_per_second", "rank_step_seconds"):
        drawn(page, f"performance-charts-{metric}")
    label = page.locator("#plot-performance-charts-loss").get_attribute("aria-label") or ""
    assert "going: " in label
    page.get_by_text("Show as table").first.click()
    expect(page.get_by_role("table", name="Training loss")).to_be_visible()

    write_run(home, "going", phase="Running", step=410, totalSteps=1000, loss=1.25, **ATTEMPT)
    with (home / "runs" / "going" / "data" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(41) | {"loss": 0.987}) + "\n")
    expect(going).to_contain_text("410 of 1000")
    expect(page.get_by_role("img", name="going: 0.987 at 410").first).to_be_visible()
    assert all(url.startswith((dashboard, "data:", "blob:")) for url in requests)


def test_the_extreme_ranks_of_an_active_run_are_shown(dashboard: str, page: Page) -> None:
    page.goto(dashboard)
    usage = page.locator("#usage")
    expect(usage).to_contain_text("Most memory that a rank has used: 3 GiB")
    expect(usage).to_contain_text("of 64 ranks: those with the lowest and highest values")
    table = page.get_by_role("table", name="going: ranks")
    row = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name="50", exact=True))
    for text in ("2 GiB", "3%", "70 GiB", "least GPU"):
        expect(row).to_contain_text(text)
    expect(usage.get_by_role("heading")).to_have_text(["going"])  # the others have ended
    page.get_by_role("checkbox", name="Show going in the charts").first.uncheck()
    expect(usage).to_have_text("None of the selected runs is active.")


def test_the_trace_of_a_selected_run_is_downloaded(dashboard: str, home: Path, page: Page) -> None:
    path = "profiles/step-100-102/rank-0.json.gz"
    write_run(home, "done", profile=path)
    trace = home / "runs" / "done" / "data" / path
    trace.parent.mkdir(parents=True)
    trace.write_bytes(b"trace")
    page.goto(dashboard)
    box = page.locator("#traces")
    expect(box.get_by_role("listitem")).to_have_text([f"done: {path}"])
    with page.expect_download() as download:
        box.get_by_role("link", name=path).click()
    assert download.value.path().read_bytes() == b"trace"
    page.get_by_role("checkbox", name="Show done in the charts").first.uncheck()
    expect(box).to_be_hidden()


def test_tabs_work_by_keyboard_and_fit_a_phone(dashboard: str, page: Page) -> None:
    page.set_viewport_size(SMALL_PHONE)  # type: ignore[arg-type]
    page.emulate_media(color_scheme="dark")
    page.goto(dashboard)
    drawn(page, "performance-charts-loss")
    expect(page.get_by_role("table", name="going: ranks")).to_be_visible()
    assert fits(page)
    page.get_by_role("tab", name="Performance").focus()
    for name in TABS[1:]:
        page.keyboard.press("ArrowRight")
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        assert fits(page), name
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Performance")).to_be_focused()
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Demo")).to_be_focused()
    page.reload()  # the URL fragment selects the tab
    expect(page.get_by_role("tabpanel", name="Demo")).to_be_visible()


def test_the_calculator_updates_as_values_are_entered(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#scaling")
    tiles = page.locator("#scaling-tiles")
    expect(tiles).to_contain_text("Cost projected")
    drawn(page, "speedup")
    processes = page.locator("#scaling-form").get_by_role("spinbutton", name="Processes")
    processes.fill("4")
    page.locator("#scaling-form").get_by_label("Budget").fill("34")  # 34e6 / 3400 per s = 10,000 s
    expect(tiles).to_contain_text("2 h 47 min")
    expect(tiles).to_contain_text("Throughput 3400 tokens/s")
    expect(tiles).to_contain_text("22.22 EUR")  # 10,000 s of 4 processes at the study's 2.0
    processes.fill("100")
    expect(page.locator("#scaling-warnings")).to_contain_text("25 times the largest measured size")
    expect(page.get_by_role("row", name="100 projected")).to_be_visible()


def test_training_cost_and_demo_tabs_work(dashboard: str, page: Page) -> None:
    page.goto(f"{dashboard}/#training")
    for metric in ("loss", "eval_loss", "learning_rate", "grad_norm"):
        drawn(page, f"training-charts-{metric}")
    expect(page.locator("#samples pre").first).to_have_text("to be <b>or</b> not")
    lines = page.locator("figure", has=page.locator("#plot-training-charts-grad_norm"))
    expect(lines.locator(".legend li")).to_have_count(3)
    page.get_by_role("checkbox", name="Show done in the charts").uncheck()
    expect(lines.locator(".legend li")).to_have_count(2)

    page.get_by_role("tab", name="Cost").click()
    drawn(page, "costs")
    expect(page.locator("#price-file")).to_contain_text("example prices")
    row = page.get_by_role("row", name="Cloud, 8 large GPUs")
    unfounded = page.locator("#cost-unfounded")
    expect(unfounded).to_contain_text("measured on a CPU, which says nothing about a GPU")
    expect(row).to_contain_text("unknown")
    price = page.get_by_role("spinbutton", name="Price per unit-hour: Cloud, 8 large GPUs")
    price.fill("0")
    expect(row).not_to_contain_text("0.00 USD")
    page.get_by_role("spinbutton", name="Speed: Cloud, 8 large GPUs").fill("40")
    expect(row).to_contain_text("0.00 USD")
    expect(row).to_contain_text("lowest")

    page.get_by_role("tab", name="Demo").click()
    expect(page.locator("#demo-info")).to_contain_text("Prompts go to the generate server at")
    page.get_by_label("Text to continue").fill("to be")
    page.get_by_label("Maximum tokens").fill("5")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#demo-facts")).to_contain_text("5 tokens")
    expect(page.locator("#demo-answer")).to_contain_text("to be")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(dashboard: str, page: Page, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.goto(dashboard)
    for name, chart in zip(TABS, CHARTS, strict=True):
        page.get_by_role("tab", name=name).click()
        if chart:
            drawn(page, chart)
        violations = axe.run(page).response["violations"]
        serious = {
            one["id"]: [node["html"][:200] for node in one["nodes"]]
            for one in violations
            if one["impact"] in ("serious", "critical")
        }
        assert not serious, (name, serious)


def test_the_api_key_is_requested_and_kept(home: Path, page: Page) -> None:
    settings = DashboardSettings.model_validate({"home": str(home), "api_key": "secret"})
    with running(create_dashboard_app(settings)) as client:
        page.goto(str(client.base_url))
        expect(page.get_by_role("status")).to_have_text("This dashboard requires an API key.")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("wrong\n")
        expect(page.get_by_role("status")).to_have_text("The API key is not valid.")
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Enter")
        expect(page.get_by_role("row", name="done")).to_be_visible()
        page.reload()
        expect(page.get_by_role("row", name="done")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_hidden()
