"""API keys: on every route of every app but the public ones, compared in constant time."""

import hmac
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route

from tests.support.serving.servers import serving
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.settings import DashboardSettings
from trainyard_serving.classify.app import create_classify_app
from trainyard_serving.generate.app import create_generate_app
from trainyard_serving.settings import ClassifySettings, GenerateSettings, VisionSettings
from trainyard_serving.vision.app import create_vision_app

KEYS = ["sk-first", "sk-second"]
ADMIN_KEY = "sk-admin"
ROLLBACK = "/admin/rollback"
CAN_ROLL_BACK = ("generate", "classify")
HEALTH, METRICS = {"/health", "/ready"}, {"/metrics"}
# Open to everyone: the apps' pages and their documentation, which contain no data of the
# user's and ask for the key themselves. A new route is closed unless it is added here, too.
PAGES = {"/", "/openapi.json"}
FILES = ("/docs", "/docs/static", "/static")  # what is below them is public
DOCS = {"/docs", "/docs/start.js", "/docs/static/x"}
OPEN = {
    "generate": PAGES,
    "generate on SGLang": PAGES,
    "classify": PAGES | DOCS | {"/try"},
    "vision": PAGES,
    "dashboard": PAGES | {"/static/x"},
}
CLOSED = {
    "generate": {"/v1/completions", "/v1/chat/completions", "/v1/models"},
    "generate on SGLang": {"/v1/completions", "/v1/chat/completions", "/v1/models"},
    "classify": {"/predict", "/predict/batch"},
    "vision": {"/answer"},
    "dashboard": {"/api/state", "/api/runs", "/api/demo"},
}
apps = pytest.mark.parametrize("name", CLOSED)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with two keys; no model is needed to refuse requests."""
    with serving(run_dir=tmp_path_factory.mktemp("run"), api_key=" , ".join(KEYS)) as client:
        yield client


def create(name: str, **settings: Any) -> FastAPI:
    """An app that is never started: it has no model, and needs none to refuse requests."""
    match name:
        case "generate":
            return create_generate_app(GenerateSettings(run_dir="nowhere", **settings))
        case "generate on SGLang":
            return create_generate_app(GenerateSettings(engine="sglang", **settings))
        case "classify":
            return create_classify_app(ClassifySettings(run_dir="nowhere", **settings))
        case "vision":
            return create_vision_app(VisionSettings(**settings))
    return create_dashboard_app(DashboardSettings(home="nowhere", **settings))


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of all routes, which include all operations of the app's OpenAPI."""
    found = set()
    for route in app.routes:
        assert isinstance(route, Route | Mount), route
        path = route.path + "/x" if isinstance(route, Mount) else route.path
        methods = {"GET"} if isinstance(route, Mount) else route.methods or set()
        found |= {(method, re.sub("{[^}]*}", "x", path)) for method in methods}
    documented = {
        (method.upper(), re.sub("{[^}]*}", "x", path))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
    assert documented <= found
    return found


async def statuses(app: FastAPI, **headers: str) -> dict[str, set[int]]:
    """Path -> the statuses of its methods' answers, and of methods and paths that aren't there."""
    found: dict[str, set[int]] = {}
    requests = routes(app) | {("GET", "/nothing"), ("PUT", "/health"), ("POST", "/predict/")}
    # Dots lead nowhere: what a prefix opens are files, and no route is behind them.
    requests |= {("GET", f"{prefix}/%2e%2e/metrics") for prefix in FILES}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for method, path in requests:
            response = await client.request(method, path, headers=headers)
            found.setdefault(path, set()).add(response.status_code)
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert "API key" in response.text
    return found


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@apps
@pytest.mark.parametrize("protected", [set(), HEALTH, METRICS], ids=["usual", "health", "metrics"])
async def test_without_a_key_only_public_paths_answer(name: str, protected: set[str]) -> None:
    settings = {"protect_health": protected == HEALTH, "protect_metrics": protected == METRICS}
    found = await statuses(create(name, api_key="sk-first", **settings))
    public = OPEN[name] | HEALTH | METRICS
    assert found.keys() >= CLOSED[name] | public
    closed = {path for path, codes in found.items() if codes == {401}}
    dotted = {f"{prefix}/%2e%2e/metrics" for prefix in FILES}
    assert closed == found.keys() - (public - protected) - dotted
    assert all(401 not in codes for path, codes in found.items() if path not in closed)
    assert all(found[path] == {404} for path in dotted)


@apps
async def test_with_a_key_every_route_answers(name: str) -> None:
    app = create(name, api_key="sk-first", protect_health=True, protect_metrics=True)
    found = await statuses(app, **bearer("sk-first"))
    assert all(401 not in codes for codes in found.values())


@apps
async def test_without_configured_keys_all_paths_are_open_and_rollback_is_absent(name: str) -> None:
    found = await statuses(create(name))
    assert all(401 not in codes for codes in found.values())
    assert ROLLBACK not in found


@apps
async def test_with_a_key_for_clients_only_there_is_no_rollback(name: str) -> None:
    found = await statuses(create(name, api_key="sk-first"), **bearer("sk-first"))
    assert ROLLBACK not in found


@pytest.mark.parametrize("name", CAN_ROLL_BACK)
@pytest.mark.parametrize("api_key", [None, "sk-first"])
async def test_rollback_takes_only_a_key_of_its_own(name: str, api_key: str | None) -> None:
    app = create(name, api_key=api_key, admin_api_key=ADMIN_KEY)
    for headers in ({}, bearer("sk-first"), {"x-api-key": "sk-first"}):
        assert (await statuses(app, **headers))[ROLLBACK] == {401}
    found = await statuses(app, **bearer(ADMIN_KEY))
    assert found[ROLLBACK] == {409}  # no previous model, but in
    if api_key:
        assert found["/v1/models" if name == "generate" else "/predict"] == {401}


@pytest.mark.parametrize("kind", [GenerateSettings, ClassifySettings])
def test_an_admins_key_that_clients_have_is_refused(kind: type[GenerateSettings]) -> None:
    with pytest.raises(ValueError, match="--admin-api-key must differ from --api-key"):
        kind(run_dir="r", api_key="a,b", admin_api_key="b")


def test_the_401_has_openais_error_form(locked: httpx.Client) -> None:
    response = locked.post("/v1/completions")
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-wrong"),
        bearer("sk-firs"),
        bearer("sk-first "[::-1]),
        bearer("sk-first,sk-second"),
        bearer("sk-first , sk-second"),
        {"authorization": "Bearer"},
        {"authorization": "sk-first"},
        {"authorization": "Basic sk-first"},
        {"x-api-key": "sk-wrong"},
        {"x-api-key": ""},
        {"authorization": "Bearer sk-wrong", "x-api-key": "sk-first"},
    ],
)
def test_a_wrong_key_is_a_401(locked: httpx.Client, headers: dict[str, str]) -> None:
    assert locked.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_accepted_in_both_headers(locked: httpx.Client, key: str) -> None:
    for headers in (bearer(key), {"authorization": f"bearer  {key}"}, {"x-api-key": key}):
        assert locked.get("/v1/models", headers=headers).status_code == 503  # no model, but in


def test_bytes_that_are_not_text_are_a_wrong_key(locked: httpx.Client) -> None:
    headers = {b"authorization": b"Bearer \xff\xfe"}
    assert locked.get("/v1/models", headers=headers).status_code == 401


def test_every_key_is_compared_in_constant_time(
    locked: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("x", "sk-first", "y" * 5000):
        locked.get("/v1/models", headers=bearer(key))
    assert compared == [(32, 32)] * 6
