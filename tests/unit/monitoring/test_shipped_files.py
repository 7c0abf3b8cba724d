"""What is shipped is what the code says, and asks for metrics that exist."""

import json
from typing import Any

import pytest
from prometheus_client import generate_latest

from monitoring import gpu
from monitoring.__main__ import files
from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import WIDTH, Dashboard
from monitoring.records import RECORDS
from tests.support.monitoring import queries
from tests.support.monitoring.queries import ROOT, everything
from trainyard_api import metrics
from trainyard_api.job import TrainerJob
from trainyard_operator.instruments import Instruments
from trainyard_serving.metrics import Metrics
from trainyard_trainer.reporting.metrics import TrainerMetrics

dashboards = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)


def test_the_charts_files_are_current() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name}: run `make monitoring`"
    shipped = set((ROOT / "charts/operator").glob("dashboards/*"))
    assert shipped == {path for path in files() if path.parent.name == "dashboards"}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names in what trainer, operator and servers really export."""
    job = TrainerJob(run="r", recipe="gpt", run_dir="/x", report_port=0)
    texts = (
        TrainerMetrics(job).text(),
        generate_latest(Instruments().registry),
        Metrics().exposition(),
    )
    lines = [line.split() for text in texts for line in text.decode().splitlines()]
    names = {(words[2], words[3]) for words in lines if words[:2] == ["#", "TYPE"]}
    histograms = {name for name, kind in names if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return ({name for name, _ in names} - histograms) | parts


def test_every_query_asks_for_what_is_exported_or_recorded(exported: set[str]) -> None:
    """A metric that is renamed in one place only is found here; `make system` asks for data."""
    recorded = {record.name for record in RECORDS}
    unknown = {
        (asked.where, name)
        for asked in everything()
        for name in asked.names - exported - recorded
        if not name.startswith(gpu.PREFIX)
    }
    assert unknown == set()


def test_every_metric_is_exported(exported: set[str]) -> None:
    for metric in metrics.ALL:
        names = {metric.name, f"{metric.name}_count"}
        assert names & exported, f"{metric.name} is in nobody's /metrics"


def test_every_metric_is_shown_somewhere() -> None:
    """What nobody looks at costs a series for nothing."""
    asked = {name for query in everything() for name in query.names}
    for metric in metrics.ALL:
        if metric.part != "all":
            assert any(name.startswith(metric.name) for name in asked), metric.name


def test_the_units_are_prometheus_own() -> None:
    for metric in metrics.ALL:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_ms", "_milliseconds", "_mib", "_percent")), metric.name
        assert metric.help.endswith("."), metric.name


@dashboards
def test_panels_are_described_and_fill_the_grid(dashboard: Dashboard) -> None:
    placed = dashboard.to_json()["panels"]
    shown = [*placed, *(inner for row in placed for inner in row.get("panels", []))]
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, f"{panel['title']} lies on another panel"
        taken |= cells
        assert at["x"] + at["w"] <= WIDTH
    for panel in dashboard.panels:
        assert panel.title
        assert panel.description.endswith("."), panel.title
        assert panel.queries
        for query in panel.queries:
            assert query.legend or query.instant or len(panel.queries) == 1, panel.title


@dashboards
def test_every_row_is_full(dashboard: Dashboard) -> None:
    for row in dashboard.rows:
        width = 0
        for panel in row.panels:
            width = panel.width if width + panel.width > WIDTH else width + panel.width
        assert width == WIDTH or row.title == "Process of rank 0", f"{dashboard.name}: {row.title}"


@dashboards
def test_no_data_source_is_named(dashboard: Dashboard) -> None:
    def sources(json: Any) -> list[Any]:
        if isinstance(json, dict):
            own = [json["datasource"]] if "datasource" in json else []
            return own + [found for value in json.values() for found in sources(value)]
        return [found for item in json for found in sources(item)] if isinstance(json, list) else []

    found = sources(dashboard.to_json())
    assert found
    assert all(source["uid"] == "${datasource}" for source in found)


@dashboards
def test_variables_are_declared(dashboard: Dashboard) -> None:
    known = {variable.name for variable in dashboard.variables}
    values = dict.fromkeys(known, "x")
    for asked in queries.panels(dashboard.name):
        assert "$" not in asked.filled(values).expr, asked.where
    assert json.dumps(dashboard.to_json()).count('"type": "datasource"') == 1
