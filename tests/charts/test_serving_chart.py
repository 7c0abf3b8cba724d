"""charts/serving: `--set run=NAME` is enough, and everything follows from it."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest

from trainyard_serving.settings import GenerateSettings, Source, add_flags, read_settings

from .conftest import CHARTS, Refusal, Render, Rendered


def pod(rendered: Rendered) -> dict[str, Any]:
    spec: dict[str, Any] = rendered.one("Deployment")["spec"]["template"]["spec"]
    return spec


def server(rendered: Rendered) -> dict[str, Any]:
    (container,) = pod(rendered)["containers"]
    assert isinstance(container, dict)
    return container


def settings(container: dict[str, Any], kind: type[Source]) -> Any:
    """What the program would read from the container's arguments and environment."""
    parser = argparse.ArgumentParser()
    add_flags(parser, kind)
    env = {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}
    return read_settings(kind, parser.parse_args(container["args"]), env)


def test_the_runs_name_is_enough(render: Render) -> None:
    rendered = render("serving", "run=shakespeare")
    spec = pod(rendered)
    volume = next(item for item in spec["volumes"] if item["name"] == "storage")
    assert volume["persistentVolumeClaim"]["claimName"] == "shakespeare"
    (verify,) = spec["initContainers"]
    assert verify["command"][-2:] == ["trainyard_serving", "verify"]
    assert settings(verify, Source).run_dir == Path("/trainyard/shakespeare")
    read = settings(server(rendered), GenerateSettings)
    assert read.run_dir == Path("/trainyard/shakespeare")
    assert (read.host, read.port) == ("0.0.0.0", 8000)


def test_the_run_is_mounted_read_only_and_only_tmp_can_be_written(render: Render) -> None:
    spec = pod(render("serving", "run=a"))
    for container in [*spec["initContainers"], *spec["containers"]]:
        mounts = {
            item["mountPath"]: item.get("readOnly", False) for item in container["volumeMounts"]
        }
        assert mounts == {"/trainyard": True, "/tmp": False}


def test_another_claim_and_directory_can_be_named(render: Render) -> None:
    rendered = render("serving", "run=a", "claimName=big", "runDirectory=old/a")
    assert pod(rendered)["volumes"][0]["persistentVolumeClaim"]["claimName"] == "big"
    assert settings(server(rendered), GenerateSettings).run_dir == Path("/trainyard/old/a")


def test_the_charts_defaults_are_the_programs(render: Render) -> None:
    read = settings(server(render("serving", "run=a")), GenerateSettings)
    own = GenerateSettings(run_dir=Path("/trainyard/a"), host="0.0.0.0")
    assert read == own


def test_settings_reach_the_program(render: Render) -> None:
    values = ("servedModelName=m", "maxTokens=1", "maxPrompts=2", "maxQueue=3")
    more = ("maxBodyBytes=5000000", "drainSeconds=60")
    rendered = render("serving", "run=a", *(f"settings.{value}" for value in values + more))
    read = settings(server(rendered), GenerateSettings)
    assert read.served_model_name == "m"
    assert (read.max_tokens, read.max_prompts, read.max_queue) == (1, 2, 3)
    assert (read.max_body_bytes, read.drain_seconds) == (5000000, 60)


def test_there_is_time_to_drain(render: Render) -> None:
    rendered = render("serving", "run=a", "settings.drainSeconds=60")
    pause = server(rendered)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(rendered)["terminationGracePeriodSeconds"] > pause + 60


def test_probes_mean_what_they_say(render: Render) -> None:
    container = server(render("serving", "run=a"))
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


def test_the_service_leads_to_the_server(render: Render) -> None:
    rendered = render("serving", "run=a")
    service, deployment = rendered.one("Service"), rendered.one("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")
    assert server(rendered)["ports"] == [{"name": "http", "containerPort": 8000}]


def test_nothing_collides_with_the_runs_own_objects(render: Render) -> None:
    """A run owns a Service of its name, whose selector is the label trainyard.dev/run."""
    rendered = render("serving", "run=shakespeare", release="shakespeare")
    for manifest in rendered.manifests:
        assert manifest["metadata"]["name"].startswith("shakespeare-serving")
        assert "trainyard.dev/run" not in str(manifest)


def test_no_pod_gets_an_api_token(render: Render) -> None:
    for spec in render("serving", "run=a").pod_specs():
        assert spec["automountServiceAccountToken"] is False
    assert not render("serving", "run=a").all("ServiceAccount")


@pytest.mark.parametrize("run", ["on", "null", "true", "y"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(
    render: Render, tmp_path: Path, run: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f'run: "{run}"')
    rendered = render("serving", files=str(values))
    assert pod(rendered)["volumes"][0]["persistentVolumeClaim"]["claimName"] == run
    assert settings(server(rendered), GenerateSettings).run_dir == Path("/trainyard") / run
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["trainyard.dev/serves"] == run


def test_recreate_leaves_no_settings_of_rolling_updates(render: Render) -> None:
    strategy = render("serving", "run=a", "strategy.type=Recreate").one("Deployment")["spec"][
        "strategy"
    ]
    assert strategy == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("run=Shakespeare", "run"),
        ("run=a_b", "run"),
        ("run=-a", "run"),
        ("run=" + "a" * 51, "run"),
        ("claimName=A", "claimName"),
        ("runDirectory=/abs", "runDirectory"),
        ("runDirectory=../x", "runDirectory"),
        ("settings.maxToken=5", "maxToken"),
        ("settings.maxQueue=0", "maxQueue"),
        ("service.port=0", "port"),
        ("service.type=External", "type"),
        ("strategy.type=Rolling", "type"),
        ("test.prompt=", "prompt"),
    ],
)
def test_helm_refuses_a_wrong_value_and_names_it(refusal: Refusal, value: str, named: str) -> None:
    message = refusal("serving", "run=a", value)
    assert "don't meet the specifications of the schema" in message
    assert named in message


def test_without_a_run_it_says_what_to_set(refusal: Refusal) -> None:
    assert "run: name the TrainingRun to serve, for example --set run=shakespeare" in refusal(
        "serving"
    )


def test_helm_test_makes_a_prediction_through_the_service(render: Render) -> None:
    rendered = render("serving", "run=a", "service.port=81")
    (container,) = rendered.one("Pod")["spec"]["containers"]
    program = (CHARTS / "serving" / "files" / "predict.py").read_text()
    assert [*container["command"], *container["args"]] == ["python", "-c", program]
    env = {item["name"]: item["value"] for item in container["env"]}
    service = rendered.one("Service")["metadata"]["name"]
    assert env == {"HOST": service, "PORT": "81", "RUN": "a", "PROMPT": "\n"}
    assert rendered.one("Pod")["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_the_notes_are_commands_that_fit_the_release() -> None:
    notes = (CHARTS / "serving" / "templates" / "NOTES.txt").read_text()
    assert "port-forward" in notes
    assert "/v1/completions" in notes
    shlex.split(notes[notes.index("  curl") : notes.index("Check it")])
