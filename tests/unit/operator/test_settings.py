"""The operator's settings and its log."""

import json
import logging

import pytest
from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_operator.__main__ import log_handler
from trainyard_operator.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("TRAINYARD_PORT", "many", "should be a valid integer"),
        ("TRAINYARD_PORT", "0", "should be greater than or equal to 1 (got '0')"),
        ("TRAINYARD_WORKERS", "0", "should be greater than or equal to 1 (got '0')"),
        ("TRAINYARD_LOG_FORMAT", "xml", "should be 'json' or 'text' (got 'xml')"),
    ],
)
def test_invalid_settings_are_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    line = validation_message(caught.value)
    assert line.startswith(f"{name}: Input {problem}")
    assert "\n" not in line


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_NAMESPACE", "team")
    monkeypatch.setenv("POD_NAME", "pod-1")
    monkeypatch.setenv("POD_NAMESPACE", "ops")
    monkeypatch.setenv("TRAINYARD_PORT", "")
    settings = Settings()
    assert (settings.namespace, settings.identity) == ("team", "pod-1")
    assert settings.own_namespace == "ops"
    assert settings.port == 8080, "an empty variable counts as unset"


def test_the_identity_defaults_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_NAME", raising=False)
    assert Settings().identity != ""


def log_line(level: int, message: str, **extra: object) -> dict[str, object]:
    """A record as the operator writes it, read back."""
    record = logging.LogRecord("trainyard_operator.queue", level, "x.py", 1, message, (), None)
    vars(record).update(extra)
    line = log_handler("json").format(record)
    assert "\n" not in line
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_log_lines_are_json_objects_with_the_same_few_fields() -> None:
    line = log_line(logging.INFO, "Pending -> Running", run="ns/r", k8s_skip=True)
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "trainyard_operator.queue",
        "message": "Pending -> Running",
        "run": "ns/r",
    }


def test_a_traceback_is_a_field_of_its_line() -> None:
    try:
        raise ValueError("ours")
    except ValueError as error:
        line = log_line(
            logging.WARNING, "retrying", exc_info=(type(error), error, error.__traceback__)
        )
    assert str(line["error"]).endswith("ValueError: ours")
    assert "run" not in line
