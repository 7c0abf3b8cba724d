"""The shipped files are up to date, query existing metrics, and are valid dashboards."""

import json
from typing import Any

import pytest
from prometheus_client import generate_latest

from monitoring.__main__ import files
from monitoring.grafana import WIDTH
from monitoring.rules import RECORDS
from tests.support.monitoring import queries
from tests.support.monitoring.queries import DCGM, DOCUMENTS, ROOT, all_panels, all_queries
from trainyard_agent.gpus import Gpu
from trainyard_agent.usage import RankUsage, exposition
from trainyard_api import metrics
from trainyard_api.job import TrainerJob
from trainyard_operator.metrics import OperatorMetrics
from trainyard_serving.metrics import Metrics
from trainyard_trainer.reporting.metrics import TrainerMetrics

each_dashboard = pytest.mark.parametrize("dashboard", DOCUMENTS)


def test_chart_files_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name}: run `make monitoring`"
    shipped = set((ROOT / "charts/operator").glob("dashboards/*"))
    assert shipped == {path for path in files() if path.parent.name == "dashboards"}


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names that trainer, agent, operator and servers really export."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("TRAINYARD_TERMINATION_LOG", "x")  # a pod's network is exported, too
    agent = exposition("r", [RankUsage(0, 1.0, 2, Gpu(0.5, 0.1, 3))])
    monkeypatch.undo()
    job = TrainerJob(run="r", recipe="gpt", run_dir="/x", report_port=0)
    texts = (
        TrainerMetrics(job).text(),
        agent.encode(),
        generate_latest(OperatorMetrics().registry),
        Metrics().exposition(),
    )
    lines = [line.split() for text in texts for line in text.decode().splitlines()]
    names = {(words[2], words[3]) for words in lines if words[:2] == ["#", "TYPE"]}
    histograms = {name for name, kind in names if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return ({name for name, _ in names} - histograms) | parts


def test_queries_use_exported_or_recorded_names(exported: set[str]) -> None:
    """Finds a metric that is renamed in one place only; `make system` checks for data."""
    recorded = {record.name for record in RECORDS}
    unknown = {
        (query.source, name)
        for query in all_queries()
        for name in query.names - exported - recorded
        if not name.startswith(DCGM)
    }
    assert unknown == set()


def test_every_metric_is_exported(exported: set[str]) -> None:
    for metric in metrics.ALL:
        names = {metric.name, f"{metric.name}_count"}
        assert names & exported, f"{metric.name} is in no /metrics"


def test_every_metric_is_queried() -> None:
    """A metric that nothing shows is a useless cost."""
    used = {name for query in all_queries() for name in query.names}
    for metric in metrics.ALL:
        if metric.part != "all":
            assert any(name.startswith(metric.name) for name in used), metric.name


def test_metric_names_follow_prometheus_conventions() -> None:
    for metric in metrics.ALL:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_ms", "_milliseconds", "_mib", "_percent")), metric.name
        assert metric.help.endswith("."), metric.name


@each_dashboard
def test_panels_have_descriptions_queries_and_legends(dashboard: str) -> None:
    for panel in all_panels(dashboard):
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["targets"]
            for target in panel["targets"]:
                alone = len(panel["targets"]) == 1
                legend = target.get("legendFormat", "__auto") != "__auto"
                assert legend or target["instant"] or alone, panel["title"]


@each_dashboard
def test_panels_fill_the_grid_without_overlap(dashboard: str) -> None:
    panels = all_panels(dashboard)
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: dict[tuple[int, int], str] = {}
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= WIDTH, panel["title"]
        for y in range(grid["y"], grid["y"] + grid["h"]):
            for x in range(grid["x"], grid["x"] + grid["w"]):
                assert (x, y) not in covered, f"{panel['title']} overlaps {covered[x, y]}"
                covered[x, y] = panel["title"]
    height = max(y for _, y in covered) + 1
    gaps = {(x, y) for x in range(WIDTH) for y in range(height)} - covered.keys()
    assert gaps == set()


@each_dashboard
def test_data_source_is_a_variable(dashboard: str) -> None:
    def sources(json: Any) -> list[Any]:
        if isinstance(json, dict):
            own = [json["datasource"]] if "datasource" in json else []
            return own + [source for value in json.values() for source in sources(value)]
        return (
            [source for item in json for source in sources(item)] if isinstance(json, list) else []
        )

    every = sources(DOCUMENTS[dashboard])
    assert every
    assert all(source["uid"] == "${datasource}" for source in every)


@each_dashboard
def test_variables_are_declared(dashboard: str) -> None:
    variables = DOCUMENTS[dashboard]["templating"]["list"]
    values = {variable["name"]: "x" for variable in variables}
    for query in queries.panel_queries(dashboard):
        assert "$" not in query.substitute(values).expr, query.source
    assert [each["name"] for each in variables if each["type"] == "datasource"] == ["datasource"]
    assert json.dumps(DOCUMENTS[dashboard]).count('"type": "datasource"') == 1
