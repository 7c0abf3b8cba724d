"""The dashboard's settings: flags, environment variables, and one-line errors."""

from pathlib import Path

import pytest

from trainyard_dashboard.settings import DashboardSettings, read_settings
from trainyard_serving.settings import SettingsError


def test_flags_take_precedence_over_variables_and_empty_variables_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINYARD_SERVING_PORT", "9001")
    monkeypatch.setenv("TRAINYARD_SERVING_MAX_QUEUE", "3")
    monkeypatch.setenv("TRAINYARD_SERVING_PROMETHEUS_URL", "")
    settings = read_settings(["--port", "9002", "--cluster", "true"])
    assert (settings.port, settings.max_queue, settings.cluster) == (9002, 3, True)
    assert settings.prometheus_url is None


def test_local_runs_are_read_unless_another_data_source_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINYARD_HOME", "/srv/trainyard")
    assert read_settings([]).local_home == Path("/srv/trainyard")
    assert read_settings(["--cluster", "true"]).local_home is None
    assert read_settings(["--cluster", "true", "--home", "/a"]).local_home == Path("/a")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "x"], "--port: Input should be a valid integer"),
        (["--poll-seconds", "0"], "--poll-seconds: Input should be greater than or equal to 0.1"),
        (["--demo-url", "localhost"], "--demo-url: String should match pattern"),
        (["--namespace", "ml"], "--context and --namespace need --cluster true"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others see the runs: set TRAINYARD_SERVING_"),
    ],
)
def test_an_invalid_setting_is_one_line_that_names_the_flag(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings(argv)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_an_unknown_flag_exits_with_2() -> None:
    with pytest.raises(SystemExit) as raised:
        read_settings(["--prot", "8050"])
    assert raised.value.code == 2


def test_with_a_key_the_server_may_listen_on_a_public_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINYARD_SERVING_API_KEY", "secret")
    settings = read_settings(["--host", "0.0.0.0"])
    assert not settings.local_only
    assert settings == DashboardSettings.model_validate({"host": "0.0.0.0", "api_key": "secret"})
