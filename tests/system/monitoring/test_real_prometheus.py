"""Every query returns data from a Prometheus that scrapes a real run, servers and operator."""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import until
from tests.support.monitoring import queries
from tests.support.monitoring.prometheus_server import (
    Prometheus,
    Target,
    exposition,
    prometheus,
)
from tests.support.monitoring.queries import Query
from tests.system.monitoring.cluster_stand_in import NAMESPACE
from tests.system.monitoring.whole_system import CONFIGURATION, RUN, STUDY, whole_system
from trainyard_api import metrics

RULES = Path(__file__).parents[3] / "charts" / "operator" / "rules" / "trainyard.yaml"
VARIABLES = {
    "namespace": NAMESPACE,
    "run": f"{RUN}|hung|script",
    "study": STUDY,
    "configuration": CONFIGURATION,
    "app": "bard-serving|news-serving",
}
Targets = dict[str, list[Target]]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        directory = tmp_path_factory.mktemp("system")
        with whole_system(directory, monkeypatch) as targets:
            yield targets


@pytest.fixture(scope="module")
def server(targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets, RULES) as server:
        yield server


def wait_for_data(server: Prometheus, expected: Iterable[Query]) -> None:
    """Wait until each query has returned data once; fail with those that have not."""
    pending = [query.substitute(VARIABLES) for query in expected]
    assert pending

    def all_returned() -> bool:
        pending[:] = [query for query in pending if not server.values(query.expr)]
        return not pending

    try:
        until(all_returned, "data")
    except AssertionError:
        missing = "\n".join(f"{query.source}: {query.expr}" for query in pending)
        pytest.fail(f"no data for {len(pending)} queries:\n{missing}")


@pytest.mark.parametrize("dashboard", queries.DOCUMENTS)
def test_panels_have_data(server: Prometheus, dashboard: str) -> None:
    panels = queries.panel_queries(dashboard)
    wait_for_data(server, (query for query in panels if not query.needs_gpu))


@pytest.mark.parametrize("dashboard", queries.DOCUMENTS)
def test_variables_have_values(server: Prometheus, dashboard: str) -> None:
    wait_for_data(server, queries.variable_queries(dashboard))


def test_a_script_that_reports_nothing_can_be_selected(server: Prometheus) -> None:
    (query,) = (q for q in queries.variable_queries("run") if q.source.endswith("$run"))
    expr = query.substitute(VARIABLES).expr

    def listed() -> set[str]:
        return {labels["run"] for labels, _ in server.values(expr)}

    until(lambda: {RUN, "script"} <= listed(), "the run and the silent script")


def test_recording_rules_have_data(server: Prometheus) -> None:
    records = list(queries.record_queries())
    wait_for_data(server, records)
    wait_for_data(server, (Query(record.source, record.source) for record in records))
    groups = server.get("/api/v1/rules")["groups"]
    errors = {rule.get("lastError") for group in groups for rule in group["rules"]}
    assert errors <= {None, ""}


def test_alerts_have_data(server: Prometheus) -> None:
    wait_for_data(server, queries.alert_queries())


def test_autoscaler_query_has_data(server: Prometheus) -> None:
    wait_for_data(server, [queries.scaled_object_query(NAMESPACE, "bard-serving")])


def test_only_the_expected_alert_fires(server: Prometheus) -> None:

    def firing() -> set[str]:
        alerts = server.get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    until(lambda: "TrainyardRunFailed" in firing(), "the alert for the failed run")
    assert firing() == {"TrainyardRunFailed"}


def test_promtool_accepts_the_metrics(targets: Targets) -> None:
    for group in targets.values():
        for target in group:
            text = exposition(target)
            result = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
            )
            assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_series_are_known_and_labels_within_bounds(targets: Targets) -> None:
    known = {metric.name.removesuffix("_total"): metric for metric in metrics.ALL}
    for group in targets.values():
        for target in group:
            for family in text_string_to_metric_families(exposition(target)):
                metric = known[family.name]
                for label in metric.labels:
                    values = {sample.labels[label] for sample in family.samples}
                    assert len(values) <= label.at_most, f"{metric.name}{{{label}}}"
                for sample in family.samples:
                    assert set(sample.labels) - {"le"} == set(metric.labels)
