"""Every query has data: a real Prometheus scrapes real runs, servers and the operator."""

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
from tests.support.monitoring.queries import Asked
from tests.system.monitoring.cluster_stand_in import NAMESPACE
from tests.system.monitoring.whole_system import CONFIGURATION, RUN, STUDY, whole_system
from trainyard_api import metrics

RULES = Path(__file__).parents[3] / "charts" / "operator" / "rules" / "trainyard.yaml"
VARIABLES = {
    "namespace": NAMESPACE,
    "run": f"{RUN}|hung",
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


def all_have_data(server: Prometheus, asked: Iterable[Asked]) -> None:
    """Wait until each query has had data once, or tell which have none."""
    left = [each.filled(VARIABLES) for each in asked]
    assert left

    def ask() -> bool:
        left[:] = [each for each in left if not server.values(each.expr)]
        return not left

    try:
        until(ask, "data")
    except AssertionError:
        missing = "\n".join(f"{each.where}: {each.expr}" for each in left)
        pytest.fail(f"no data for {len(left)} queries:\n{missing}")


@pytest.mark.parametrize("dashboard", ["run", "fleet", "scaling", "serving"])
def test_every_query_of_every_panel(server: Prometheus, dashboard: str) -> None:
    all_have_data(server, (each for each in queries.panels(dashboard) if not each.needs_gpu))


def test_every_recording_rule(server: Prometheus) -> None:
    all_have_data(server, queries.records())
    all_have_data(server, (Asked(record.where, record.where) for record in queries.records()))
    groups = server.get("/api/v1/rules")["groups"]
    errors = {rule.get("lastError") for group in groups for rule in group["rules"]}
    assert errors <= {None, ""}


def test_everything_that_alerts_look_at(server: Prometheus) -> None:
    all_have_data(server, queries.alerts())


def test_the_query_that_scales_servers(server: Prometheus) -> None:
    all_have_data(server, [queries.scaled_object(NAMESPACE, "bard-serving")])


def test_which_alerts_fire(server: Prometheus) -> None:
    """Those for which there is a cause, and no others."""

    def firing() -> set[str]:
        alerts = server.get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    until(lambda: "TrainyardRunFailed" in firing(), "the alert of the run that has failed")
    assert firing() == {"TrainyardRunFailed"}


def test_prometheus_likes_the_names(targets: Targets) -> None:
    for group in targets.values():
        for target in group:
            text = exposition(target)
            result = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
            )
            assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_series_are_ours_and_their_labels_within_bounds(targets: Targets) -> None:
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
