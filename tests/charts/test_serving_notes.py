"""charts/serving: what `helm install` prints are commands that fit the release."""

import shlex
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from .conftest import CHARTS, set_flags
from .serving_values import CLASSIFY, EMBED, GENERATE, HUB, INGRESS, KEY, SGLANG, VISION

Helm = Callable[..., CompletedProcess[str]]


def notes(helm: Helm, *values: str) -> str:
    chart = str(CHARTS / "serving")
    result = helm("install", "bard", chart, "-n", "ml", "--dry-run=client", *set_flags(values))
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("\nNOTES:\n")[2]


def command(text: str, program: str) -> list[str]:
    """The words of the first command of that program, continued lines included."""
    lines = text.replace("\\\n", " ").splitlines()
    return shlex.split(next(line for line in lines if line.strip().startswith(program)))


@pytest.mark.parametrize(
    ("values", "route", "page"),
    [
        (GENERATE, "/v1/completions", "/)"),
        (CLASSIFY, "/predict", "/try)"),
        (EMBED, "/v1/embeddings", "/docs)"),
        (VISION, "/answer", "/)"),
    ],
)
def test_the_command_to_try_is_the_apps(
    helm: Helm, values: tuple[str, ...], route: str, page: str
) -> None:
    text = notes(helm, *values)
    assert command(text, "curl")[1] == f"http://127.0.0.1:8000{route}"
    assert f"(or open http://127.0.0.1:8000{page}" in text
    assert "bard-serving" in command(text, "kubectl -n ml port-forward")[4]
    assert "helm -n ml test bard" in text


def test_the_key_is_read_from_its_secret_and_sent(helm: Helm) -> None:
    text = notes(helm, *GENERATE, *KEY)
    assert "authorization: Bearer $KEY" in command(text, "curl")
    assert "get secret bard-serving" in text
    assert '{{index .data "api-key" | base64decode}}' in text
    assert "KEY" not in notes(helm, *GENERATE)


def test_notes_name_the_log_that_explains_a_failure(helm: Helm) -> None:
    assert "-c verify" in notes(helm, *GENERATE)
    both = notes(helm, *SGLANG)
    assert "-c verify" in both
    assert "-c sglang" in both
    hub = notes(helm, *HUB)
    assert "-c verify" not in hub
    assert "Qwen/Qwen2-0.5B-Instruct: app generate, engine sglang" in hub


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (GENERATE, "serves the last verified model of run shakespeare: app generate"),
        ((*CLASSIFY, "model=best"), "serves the best verified model of run ag-news: app classify"),
        ((*SGLANG, "model=best"), "serves the best verified model at its start of run shakespeare"),
        ((*GENERATE, "model=400"), "serves step 400 of run shakespeare: app generate"),
    ],
)
def test_notes_say_which_model_is_served(helm: Helm, values: tuple[str, ...], said: str) -> None:
    assert said in notes(helm, *values)


def test_notes_warn_of_an_ingress_without_a_key(helm: Helm) -> None:
    assert "WARNING" in notes(helm, *GENERATE, *INGRESS)
    assert "WARNING" not in notes(helm, *GENERATE, *INGRESS, *KEY)
