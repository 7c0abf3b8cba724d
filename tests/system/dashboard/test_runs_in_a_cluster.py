"""A cluster's run with the real Kubernetes client: events, logs, and what is unknown."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests import patience
from tests.support.canned_http import Answer, answering
from tests.system.dashboard.test_remote_data import cluster
from trainyard_dashboard import catalog as catalog_module
from trainyard_dashboard.catalog import Catalog, DataSourceError
from trainyard_dashboard.prometheus import Prometheus
from trainyard_dashboard.run_details import LogTail, RunDetails

API = "/apis/trainyard.dev/v1alpha1"
RUN = "cluster/ml/bard"
STARTED = "2026-01-01T00:00:00Z"
OBJECT: dict[str, Any] = {
    "metadata": {"name": "bard", "namespace": "ml", "labels": {"team": "lm"}},
    "spec": {"recipe": "char-gpt", "storage": {"claimName": "big"}},
    "status": {
        "phase": "Running",
        "attempt": 2,
        "nodes": 2,
        "profile": "profiles/step-1-2/rank-0.json.gz",
        "model": {"step": 9, "digest": "sha256:ab", "path": "models/step-00000009"},
        "attempts": [{"number": 2, "startTime": STARTED, "newField": 1}],
    },
}
EVENTS = [
    {
        "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
        "lastTimestamp": f"2026-01-01T00:0{minute}:00Z",
        "type": "Normal",
        "reason": "AttemptStarted",
        "message": f"minute {minute}",
        "count": 3,
    }
    for minute in (1, 2)
]


def api(events: tuple[int, Any], log: tuple[int, Any] = (200, b"")) -> Answer:
    """A Kubernetes API with one run; `asked` are its queries."""

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        match path:
            case "/apis/trainyard.dev/v1alpha1/trainingruns":
                return 200, {"items": [OBJECT], "metadata": {}}
            case "/apis/trainyard.dev/v1alpha1/namespaces/ml/trainingruns/bard":
                return 200, OBJECT
            case "/api/v1/namespaces/ml/events":
                selector = "involvedObject.kind=TrainingRun,involvedObject.name=bard"
                assert query["fieldSelector"] == selector
                return events
            case "/api/v1/namespaces/ml/pods/bard-2-1/log":
                assert (query["container"], query["tailLines"]) == ("trainer", "400")
                return log
        return 404, {}

    return answer


def read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> tuple[RunDetails, LogTail]:
    with answering(answer) as url:
        catalog = Catalog([cluster(tmp_path, monkeypatch, url)], None)
        details, log = catalog.details(RUN), catalog.log(RUN, "2-1")
    assert details is not None
    assert log is not None
    return details, log


def test_events_logs_and_the_status_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, log = read(
        tmp_path, monkeypatch, api((200, {"items": EVENTS}), (200, b"\x1b[1mstep 1\rstep 2\n"))
    )
    assert [(event.message, event.count) for event in found.events.items] == [
        ("minute 2", 3),
        ("minute 1", 3),
    ]
    assert found.logs.items == ["2-0", "2-1"]
    assert (log.text, log.note) == ("step 2\n", "The newest lines of pod bard-2-1.")
    assert found.status["attempts"][0]["number"] == 2
    assert found.run.labels == {"team": "lm"}
    assert [model.digest for model in found.models.items] == ["sha256:ab"]
    assert found.models.note.startswith("What its status names: the rest is on the run's volume")
    assert found.samples.note.startswith("Unknown: the rest is on the run's volume")
    assert found.traces.items == ["profiles/step-1-2/rank-0.json.gz"]
    assert found.serve == (
        "helm install bard charts/serving --namespace ml --set run=bard,claimName=big"
    )


def test_what_the_dashboard_may_not_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, log = read(tmp_path, monkeypatch, api((403, {}), (403, {})))
    install = "install charts/operator with dashboard"
    said = f"the cluster says 403 Forbidden: {install}"
    assert found.events.note == f"Unknown: {said}.readEvents=true."
    assert log.note == f"The log of pod bard-2-1 is unknown: {said}.readLogs=true."
    assert found.status["phase"] == "Running"  # the rest is shown nevertheless
    found, log = read(tmp_path, monkeypatch, api((200, b"[1]"), (404, {})))
    assert found.events.note == "Unknown: the API server's answer is not a list of events."
    assert log.note == "The log of pod bard-2-1 is unknown: the cluster says 404 Not Found."


def test_a_run_that_was_just_deleted_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        is_list = path == f"{API}/trainingruns"
        return (200, {"items": [OBJECT], "metadata": {}}) if is_list else (404, {})

    with pytest.raises(DataSourceError, match=r"^the cluster has no TrainingRun bard \(any more\)"):
        read(tmp_path, monkeypatch, answer)


def test_prometheus_gives_the_newest_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics(path: str, query: dict[str, str]) -> tuple[int, Any]:
        expected = 'last_over_time(trainyard_evaluation{run="bard",namespace="ml"}[60s])'
        assert (path, expected in query["query"]) == ("/api/v1/query_range", True)
        series = [
            {"metric": {"metric": name}, "values": [[1, "0.95"], [61, value]]}
            for name, value in (("accuracy", "0.9"), ("eval_loss", "NaN"))
        ]
        return 200, {"status": "success", "data": {"result": series}}

    with answering(api((200, {"items": []}))) as url, answering(metrics) as prometheus:
        source = cluster(tmp_path, monkeypatch, url)
        found = Catalog([source], Prometheus(prometheus)).details(RUN)
        without = Catalog([source], Prometheus("http://127.0.0.1:9")).details(RUN)
        listed = Catalog([], None).details(RUN)
    assert found is not None
    assert without is not None
    assert listed is None
    assert [one.metrics for one in found.evaluations.items] == [{"accuracy": 0.9}]
    assert found.evaluations.note == f"The newest, from Prometheus at {prometheus}."
    assert without.evaluations.note.startswith("Unknown: ")
    assert found.events.note == "The cluster has none any more."
    assert any("can't be reached" in line for line in without.warnings)
    assert json.loads(found.model_dump_json())["run"]["name"] == "bard"


@pytest.mark.parametrize("phase", ["Succeeded", "Suspended"])
def test_the_last_evaluation_is_looked_for_at_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    attempt = {"number": 2, "startTime": STARTED, "endTime": "2026-01-01T05:00:00Z"}
    ended: dict[str, Any] = {"phase": phase, "attempts": [attempt]}
    asked: list[float] = []

    def metrics(path: str, query: dict[str, str]) -> tuple[int, Any]:
        asked.append(float(query["end"]) - float(query["start"]))
        asked.append(float(query["end"]))
        return 200, {"status": "success", "data": {"result": []}}

    monkeypatch.setitem(OBJECT, "status", OBJECT["status"] | ended)
    with answering(api((200, {"items": []}))) as url, answering(metrics) as prometheus:
        catalog = Catalog([cluster(tmp_path, monkeypatch, url)], Prometheus(prometheus))
        assert catalog.details(RUN)
    assert asked == [3600, datetime(2026, 1, 1, 5, tzinfo=UTC).timestamp()]


@pytest.mark.parametrize("is_readable", [True, False])
def test_pages_of_a_run_that_are_opened_at_once_cost_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_readable: bool
) -> None:
    monkeypatch.setattr(catalog_module, "CACHE_SECONDS", patience.SECONDS)
    monkeypatch.setattr(catalog_module, "RETRY_SECONDS", patience.SECONDS)
    known, asked = api((200, {"items": []})), []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path.endswith("/trainingruns/bard"):
            asked.append(path)
            return known(path, query) if is_readable else (500, {})
        return known(path, query)

    def opened(catalog: Catalog) -> str:
        try:
            return catalog.details(RUN).run.name  # type: ignore[union-attr]
        except DataSourceError as error:
            return str(error)

    with answering(answer) as url, ThreadPoolExecutor() as pool:
        catalog = Catalog([cluster(tmp_path, monkeypatch, url)], None)
        found = list(pool.map(opened, [catalog] * 4))
    error = "the cluster refuses to get TrainingRun bard: 500 Internal Server Error"
    assert found == ["bard" if is_readable else error] * 4
    assert len(asked) == 1
