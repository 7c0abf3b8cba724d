"""The dashboard's HTTP server: the API, its errors, access, and the demo."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.canned_http import answering
from tests.support.dashboard.home import write_run, write_study
from tests.support.serving.servers import running
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings

RUN = "local/default/shakespeare"
CALCULATE: dict[str, Any] = {"study": "local/default/sizes", "processes": 8, "budget": 1e9}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_run(home, "shakespeare", points=2_000)
    write_study(home)
    return home


@pytest.fixture(scope="module")
def dashboard(home: Path) -> Iterator[httpx.Client]:
    """A dashboard on the loopback address, without a key."""
    with running(create_dashboard_app(DashboardSettings(home=str(home)))) as client:
        yield client


def test_a_curve_of_2000_points_is_downsampled_to_500(dashboard: httpx.Client) -> None:
    (run,) = dashboard.get("/api/runs").json()["runs"]
    assert (run["id"], run["phase"], run["step"]) == (RUN, "Succeeded", 20_000)
    answer = dashboard.get("/api/history", params={"run": RUN, "metric": ["loss", "grad_norm"]})
    curves = answer.json()["runs"][RUN]["curves"]
    assert {curve["metric"] for curve in curves} == {"loss", "grad_norm"}
    assert all(250 <= len(curve["x"]) <= 501 for curve in curves)
    assert all(curve["count"] == 2_000 and curve["origin"] == "measured" for curve in curves)
    assert len(answer.content) < 60_000
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < len(answer.content) / 2


def test_a_poll_receives_only_what_is_new(dashboard: httpx.Client) -> None:
    asked: dict[str, Any] = {"run": RUN, "metric": ["loss", "axis:seconds"]}
    version = dashboard.get("/api/history", params=asked).json()["runs"][RUN]["version"]
    answer = dashboard.get("/api/history", params={**asked, "known": f"{version}@20000"})
    curves = answer.json()["runs"][RUN]["curves"]
    assert [(curve["metric"], curve["since"]) for curve in curves] == [
        ("axis:seconds", 20_000),
        ("loss", 20_000),
    ]
    assert all(set(curve["x"]) == {20_000} for curve in curves)
    assert len(answer.content) < 2_000


def test_projections_and_costs_are_computed(dashboard: httpx.Client) -> None:
    found = dashboard.get("/api/projection", params={**CALCULATE, "price": 2}).json()
    assert found["chosen"]["origin"] == "projected"
    assert found["chosen"]["cost"]["value"] == pytest.approx(found["chosen"]["hours"]["value"] * 16)
    by_study = dashboard.get("/api/costs", params=CALCULATE).json()
    assert by_study["origin"] == "projected"
    assert by_study["is_example"]
    by_run = dashboard.get("/api/costs", params={"run": RUN, "processes": 2, "budget": 1e9}).json()
    assert by_run["origin"] == "measured"
    row = by_run["rows"][0]
    assert row["hours_at_speed_1"]["value"] == pytest.approx(1e9 / 2003 / 3600, rel=1e-5)


@pytest.mark.parametrize(
    ("path", "query", "status", "message"),
    [
        ("/api/projection", CALCULATE | {"study": "x"}, 404, "study x does not exist"),
        ("/api/projection", CALCULATE | {"configuration": 3}, 404, "has no configuration 3"),
        ("/api/projection", CALCULATE | {"budget": "nan"}, 422, ""),
        ("/api/projection", CALCULATE | {"processes": 0}, 422, ""),
        ("/api/costs", {"processes": 1, "budget": 1}, 422, "give exactly one of study and run"),
        ("/api/costs", {"run": "x", "processes": 1, "budget": 1}, 404, "run x does not exist"),
        ("/api/history", {"run": RUN}, 422, ""),
        ("/api/history", {"run": RUN, "metric": "loss", "known": "x"}, 422, "known.0: String"),
        ("/api/history", {"run": RUN, "metric": "loss", "known": "a@-"}, 422, "VERSION@STEP"),
        ("/static/vendor/manifest.json", {}, 404, "there is no file vendor/manifest.json"),
        ("/static/vendor", {}, 404, "there is no file vendor"),
        ("/static/..%2fapp.py", {}, 404, ""),
        ("/static/app.py", {}, 404, "there is no file app.py"),
    ],
)
def test_an_invalid_request_is_a_one_line_error(
    dashboard: httpx.Client, path: str, query: dict[str, Any], status: int, message: str
) -> None:
    answer = dashboard.get(path, params=query)
    assert answer.status_code == status
    assert message in str(answer.json()["detail"])


def test_the_api_is_read_only_except_for_the_demo(dashboard: httpx.Client) -> None:
    operations = {
        f"{method} {path}"
        for path, methods in dashboard.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert {one for one in operations if not one.startswith("get ")} == {"post /api/demo"}


def test_requests_for_another_host_name_are_rejected(dashboard: httpx.Client) -> None:
    assert dashboard.get("/api/runs", headers={"host": "evil.example"}).status_code == 400


def test_with_a_key_only_the_page_and_health_are_public(home: Path) -> None:
    settings = DashboardSettings.model_validate({"home": str(home), "api_key": "secret"})
    with running(create_dashboard_app(settings)) as client:
        for path in ("/", "/static/main.js", "/health", "/ready"):
            assert client.get(path).status_code == 200, path
        paths = client.get("/openapi.json").json()["paths"]
        for path in (path for path in paths if path.startswith("/api/")):
            assert client.get(path).status_code == 401, path
        assert client.post("/api/demo", json={"text": "a"}).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert client.get("/api/runs", headers=headers).status_code == 200


def test_the_page_loads_nothing_from_other_hosts(dashboard: httpx.Client) -> None:
    page = dashboard.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    # A link loads nothing until it is clicked.
    assert re.findall(r'<(?!a )[^>]*(?:src|href)="(?!static/|data:,)', page.text) == []
    tag = dashboard.get("/static/chart.js").headers["etag"]
    again = dashboard.get("/static/chart.js", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_the_trace_of_a_run_here_is_a_file(tmp_path: Path) -> None:
    path = "profiles/step-100-102/rank-0.json.gz"
    for name, named in {"traced": path, "gone": path, "hostile": "../run.json"}.items():
        write_run(tmp_path, name, profile=named)
    trace = tmp_path / "runs" / "traced" / "data" / path
    trace.parent.mkdir(parents=True)
    trace.write_bytes(gzip.compress(b"{}"))
    with running(create_dashboard_app(DashboardSettings(home=str(tmp_path)))) as asked:
        runs = {run["name"]: run.get("profile") for run in asked.get("/api/runs").json()["runs"]}
        assert runs == {"traced": path, "gone": path, "hostile": None}
        answer = asked.get("/api/trace", params={"run": "local/default/traced"})
        assert answer.content == trace.read_bytes()  # not unpacked on its way
        named = answer.headers["content-disposition"]
        assert named == 'attachment; filename="traced-step-100-102-rank-0.json.gz"'
        for name in ("gone", "hostile", "unknown"):
            answer = asked.get("/api/trace", params={"run": f"local/default/{name}"})
            said = f"run local/default/{name} has no trace on this machine"
            assert (answer.status_code, answer.json()["detail"]) == (404, said)


def test_the_demo_forwards_prompts_to_the_model(client: httpx.Client) -> None:
    with running(create_dashboard_app(DashboardSettings(demo_url=str(client.base_url)))) as asked:
        about = asked.get("/api/demo").json()
        assert (about["kind"], about["problem"]) == ("generate", "")
        answer = asked.post("/api/demo", json={"text": "to be", "max_tokens": 5})
        assert answer.status_code == 200
        assert answer.json()["tokens"] == 5
        assert answer.json()["digest"].startswith("sha256:")
        wrong = asked.post("/api/demo", json={"text": "a", "max_tokens": 10_000})
        assert wrong.status_code == 422


def test_a_demo_without_a_usable_server_says_why() -> None:
    def problem(url: str | None) -> tuple[int, str]:
        with running(create_dashboard_app(DashboardSettings(demo_url=url))) as client:
            about = client.get("/api/demo").json()
            assert about["kind"] is None
            answer = client.post("/api/demo", json={"text": "a"})
            assert answer.json()["detail"] == about["problem"]
            return answer.status_code, about["problem"]

    assert problem(None) == (
        503,
        "no server is configured; start the dashboard with --demo-url URL",
    )
    assert "can't be reached" in problem("http://127.0.0.1:9")[1]
    with answering(lambda path, query: (200, {"paths": {"/other": {}}})) as url:
        assert problem(url)[1] == f"{url} is not a Trainyard generate, classify or vision server"
    with answering(lambda path, query: (200, b" " * (2 << 20))) as url:
        assert problem(url)[1] == "the server's response is too long"
