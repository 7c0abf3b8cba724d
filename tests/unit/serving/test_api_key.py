"""API keys: asked for on every route but the open ones, compared in constant time."""

import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from trainyard_serving.app import PAGES
from trainyard_serving.generate.app import create_generate_app
from trainyard_serving.settings import GenerateSettings

from .conftest import serving

KEYS = ["sk-first", "sk-second"]
HEALTH, METRICS = {"/health", "/ready"}, {"/metrics"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with two keys; no model is needed to be turned away."""
    with serving(run_dir=tmp_path_factory.mktemp("run"), api_key=" , ".join(KEYS)) as client:
        yield client


def routes(**settings: Any) -> list[tuple[str, str]]:
    """Method and path of every route of an app."""
    app = create_generate_app(GenerateSettings(run_dir="nowhere", **settings))
    found = [route for route in app.routes if isinstance(route, APIRoute)]
    assert {"/v1/completions", "/v1/chat/completions", "/admin/rollback"} <= {r.path for r in found}
    return [(min(route.methods or ()), route.path.replace("{name:path}", "x")) for route in found]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_a_key_only_the_open_routes_answer(locked: httpx.Client) -> None:
    open_paths = PAGES | HEALTH | METRICS
    for method, path in [*routes(api_key="a"), ("GET", "/nothing"), ("PUT", "/v1/models")]:
        response = locked.request(method, path)
        assert (response.status_code == 401) == (path not in open_paths), path
        if response.status_code == 401:
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


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
def test_each_key_opens_in_both_headers(locked: httpx.Client, key: str) -> None:
    for headers in (bearer(key), {"authorization": f"bearer  {key}"}, {"x-api-key": key}):
        assert locked.get("/v1/models", headers=headers).status_code == 503  # no model, but in


def test_bytes_that_are_no_text_are_a_wrong_key(locked: httpx.Client) -> None:
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


@pytest.mark.parametrize("protected", ["health", "metrics"])
def test_health_and_metrics_can_be_closed(tmp_path: Path, protected: str) -> None:
    closed, still_open = (HEALTH, METRICS) if protected == "health" else (METRICS, HEALTH)
    settings: dict[str, Any] = {f"protect_{protected}": True}
    with serving(run_dir=tmp_path, api_key="sk-first", **settings) as client:
        for path in closed:
            assert client.get(path).status_code == 401
            assert client.get(path, headers=bearer("sk-first")).status_code in (200, 503)
        for path in still_open:
            assert client.get(path).status_code in (200, 503)


def test_without_keys_everything_is_open_and_nothing_can_be_rolled_back(tmp_path: Path) -> None:
    with serving(run_dir=tmp_path, api_key=" , ") as client:
        assert client.get("/v1/models").status_code == 503
        assert client.post("/admin/rollback").status_code == 404
