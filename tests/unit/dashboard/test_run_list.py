"""The list of runs over HTTP: polls cost little, whatever the number of runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.dashboard.home import write_run
from tests.support.serving.servers import running
from trainyard_dashboard import run_list
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.catalog import RunSummary
from trainyard_dashboard.run_list import RunList
from trainyard_dashboard.settings import DashboardSettings

RUNS = 1000


def run(name: str, **fields: Any) -> RunSummary:
    return RunSummary(
        id=f"local/default/{name}", name=name, namespace="default", source="local", **fields
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for number in range(RUNS):
        write_run(home, f"run-{number}", points=1)
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainyard_dashboard.catalog.CACHE_SECONDS", 0.0)
        with running(create_dashboard_app(DashboardSettings(home=str(home)))) as client:
            yield client


def received(client: httpx.Client, **parameters: str) -> tuple[int, dict[str, Any]]:
    """Bytes of the answer's body as it was sent, and its JSON."""
    with client.stream("GET", "/api/runs", params=parameters) as answer:
        sent = answer.read()
        return answer.num_bytes_downloaded, answer.json() if sent else {}


def test_a_poll_sends_only_what_has_changed(dashboard: httpx.Client, home: Path) -> None:
    size, complete = received(dashboard)
    assert complete["complete"] is True
    assert len(complete["runs"]) == RUNS
    assert size < 40_000  # compressed; 300 kB as text

    size, same = received(dashboard, since=complete["version"])
    assert (same["runs"], same["version"]) == ([], complete["version"])
    assert size < 200

    write_run(home, "run-7", points=1, loss=0.25)
    (home / "runs" / "run-8" / "run.json").unlink()
    size, changed = received(dashboard, since=same["version"])
    assert [(one["name"], one["loss"]) for one in changed["runs"]] == [("run-7", 0.25)]
    assert changed["removed"] == ["local/default/run-8"]
    assert size < 1000

    # A client that was away for longer gets all changes since, and an unknown version everything.
    _, later = received(dashboard, since=complete["version"])
    assert later == changed
    assert received(dashboard, since="00000000-3")[1]["complete"] is True


def test_an_unchanged_list_is_not_sent_again(dashboard: httpx.Client) -> None:
    tag = dashboard.get("/api/runs").headers["etag"]
    again = dashboard.get("/api/runs", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    plain = dashboard.get("/api/runs", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(plain.json()["runs"]) >= RUNS - 1


def test_a_run_that_comes_back_is_no_longer_removed() -> None:
    runs = RunList()
    first = runs.changes([run("a"), run("b")], []).version
    second = runs.changes([run("a")], [], first)
    assert (second.runs, second.removed) == ([], ["local/default/b"])
    third = runs.changes([run("a"), run("b")], ["a problem"], second.version)
    assert ([one.name for one in third.runs], third.removed) == (["b"], [])
    assert third.problems == ["a problem"]
    assert runs.changes([run("a"), run("b")], [], first).removed == []


@pytest.mark.parametrize("version", ["", "x", "-1", "²", "9" * 30])
def test_an_unknown_version_gets_everything(version: str) -> None:
    runs = RunList()
    known = runs.changes([run("a")], []).version
    answer = runs.changes([run("a")], [], version)
    assert answer.complete
    assert [one.name for one in answer.runs] == ["a"]
    assert runs.changes([run("a")], [], f"{known.partition('-')[0]}-{version}").complete


def test_a_bounded_number_of_removed_runs_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_list, "MAX_REMOVED", 2)
    runs = RunList()
    version = runs.changes([run(name) for name in "abcd"], []).version
    answer = runs.changes([run("d")], [], version)
    assert answer.complete
    assert [one.name for one in answer.runs] == ["d"]
