"""The operator as installed: its own `helm test`, its health, its metrics."""

import httpx

from tests.e2e.conftest import SYSTEM, Forwarder
from tests.e2e.kube import TIMEOUT, Namespace, run
from tests.patience import SECONDS


def test_helm_test_passes() -> None:
    text = run("helm", "test", "trainyard", "--namespace", SYSTEM, TIMEOUT)
    assert "Succeeded" in text


def test_health_and_metrics(operator: Namespace) -> None:
    forwarder = Forwarder(operator)
    try:
        url = forwarder.url("deployment/trainyard-operator", 8080)
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{url}{path}", timeout=SECONDS).status_code == 200
        text = httpx.get(f"{url}/metrics", timeout=SECONDS).text
        assert "trainyard_operator_leader 1.0" in text
        assert 'trainyard_operator_reconciles_total{result="ok"}' in text
    finally:
        forwarder.close()
