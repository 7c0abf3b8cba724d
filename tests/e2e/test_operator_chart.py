"""The operator as installed: its own `helm test`, its health, its metrics."""

import httpx

from tests.e2e.conftest import Forwarder
from tests.e2e.kube import TIMEOUT, Namespace, run
from tests.e2e.runs import training_run
from tests.e2e.test_study import wait_metrics
from tests.patience import SECONDS


def test_helm_test_passes(operator: Namespace) -> None:
    text = run("helm", "test", "trainyard", "--namespace", operator.name, TIMEOUT)
    assert "Succeeded" in text


def test_health_and_metrics(space: Namespace, operator: Namespace) -> None:
    forwarder = Forwarder(operator)
    try:
        url = forwarder.url("deployment/trainyard-operator", 8080)
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{url}{path}", timeout=SECONDS).status_code == 200
    finally:
        forwarder.close()
    space.apply(training_run("seen", {"recipe": "char-gpt", "suspend": True}))
    space.wait_phase("seen", "Suspended")
    text = wait_metrics(operator, 'trainyard_operator_reconciles_total{result="ok"}')
    assert "trainyard_operator_leader 1.0" in text
