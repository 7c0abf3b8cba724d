"""Flags, variables and defaults."""

import argparse
from typing import TypeVar

import pytest

from trainyard_dashboard.settings import read_settings as read_dashboard_settings
from trainyard_serving.embed.settings import EmbedSettings
from trainyard_serving.settings import (
    ClassifySettings,
    GenerateSettings,
    Settings,
    SettingsError,
    add_flags,
    read_settings,
)

S = TypeVar("S", bound=Settings)


def read_as(kind: type[S], *argv: str) -> S:
    parser = argparse.ArgumentParser()
    add_flags(parser, kind)
    return read_settings(kind, parser.parse_args(argv))


def read(*argv: str) -> GenerateSettings:
    return read_as(GenerateSettings, *argv)


def test_flags_override_variables_and_variables_override_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINYARD_SERVING_PORT", "1")
    monkeypatch.setenv("TRAINYARD_SERVING_MAX_QUEUE", "5")
    monkeypatch.setenv("TRAINYARD_SERVING_MAX_PROMPTS", "")
    settings = read("--run-dir", "r", "--port", "2")
    assert (settings.port, settings.max_queue, settings.max_prompts) == (2, 5, 128)


def test_a_flag_for_the_model_replaces_variables_for_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINYARD_SERVING_RUN_DIR", "r")
    monkeypatch.setenv("TRAINYARD_SERVING_STEP", "3")
    monkeypatch.setenv("TRAINYARD_SERVING_REQUIRE", "eval_loss<=2")
    monkeypatch.setenv("TRAINYARD_SERVING_CACHE_DIR", "/cache")
    settings = read("--model", "m")
    assert (settings.run_dir, settings.step) == (None, "last")
    # What holds for a model from anywhere stays.
    assert (settings.require, settings.cache_dir) == ("eval_loss<=2", "/cache")


@pytest.mark.parametrize(("kind", "most"), [(EmbedSettings, 2048), (ClassifySettings, 128)])
def test_a_request_has_by_default_no_more_texts_than_the_queue(
    kind: type[EmbedSettings] | type[ClassifySettings],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert read_as(kind, "--model", "m").max_texts == most
    with pytest.raises(SettingsError, match="--max-texts must not be above --max-queue"):
        read_as(kind, "--model", "m", "--max-queue", "100", "--max-texts", "101")
    with pytest.raises(SettingsError, match=r"^--max-queue: .*valid integer"):
        read_as(kind, "--model", "m", "--max-queue", "many")
    monkeypatch.setenv("TRAINYARD_SERVING_MAX_QUEUE", "100")
    assert read_as(kind, "--model", "m").max_texts == 100
    with pytest.raises(SystemExit):
        read_as(kind, "--help")
    assert f"Default: {most}, or --max-queue if less. [" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_requirement_needs_a_model_that_this_server_knows() -> None:
    """SGLang may serve any model; then there is nothing to compare with the requirement."""
    assert read("--engine", "sglang").require == ""
    with pytest.raises(SettingsError, match="give exactly one of --run-dir and --model"):
        read("--engine", "sglang", "--require", "eval_loss<=2")


def test_a_wrong_variable_is_one_line_that_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_SERVING_PORT", "many")
    with pytest.raises(SettingsError, match=r"--port: .* \(got 'many'\)"):
        read("--model", "m")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give exactly one of --run-dir and --model"),
        (["--run-dir", "a", "--model", "b"], "give exactly one of --run-dir and --model"),
        (["--run-dir", "a", "--step", "newest"], "--step: must be last, best or the number of"),
        (["--model", "m", "--step", "best"], "--step needs --run-dir"),
        (["--model", "m", "--port", "99999"], "--port: "),
        (["--model", "m", "--max-queue", "0"], "--max-queue: "),
        (["--model", "m", "--device", "tpu"], "--device: "),
        (["--model", "m", "--api-key", ""], "--api-key: no key is in it: set one, or leave out"),
        (["--model", "m", "--api-key", " , "], "--api-key: no key is in it: set one, or leave out"),
        (["--model", "m", "--admin-api-key", ","], "--admin-api-key: no key is in it: set one"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_the_flag(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(*argv)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_API_KEY"])
@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_variable_without_a_key_does_not_open_the_server(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Also an empty one: that of a Secret whose value was forgotten."""
    variable = f"TRAINYARD_SERVING_{name}"
    monkeypatch.setenv(variable, value)
    message = f"no key is in it: set one, or leave out the flag and {variable}"
    with pytest.raises(SettingsError, match=message):
        read("--model", "m")
    if name == "API_KEY":
        with pytest.raises(SettingsError, match=message):
            read_dashboard_settings([])
    flag = f"--{name.lower().replace('_', '-')}"
    assert read(*("--model", "m"), flag, "key")
