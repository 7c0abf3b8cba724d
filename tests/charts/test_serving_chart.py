"""charts/serving: `--set run=NAME` is enough, and everything follows from it."""

from pathlib import Path
from typing import Any

import pytest

from trainyard_serving.settings import ClassifySettings, GenerateSettings, ModelSource

from .conftest import CHARTS, Render
from .serving_values import CLASSIFY, EMBED, GENERATE, KEY, ONNX, PROTECTED, SGLANG, SHAPES, VISION
from .test_serving_settings import read


def test_the_runs_name_is_enough(render: Render) -> None:
    rendered = render("serving", *GENERATE)
    (volume,) = [item for item in rendered.pod()["volumes"] if item["name"] == "storage"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shakespeare"}
    verify = rendered.container("verify")
    assert verify["command"][-2:] == ["trainyard_serving", "verify"]
    assert read(verify, ModelSource).run_dir == "/trainyard/shakespeare"
    settings = read(rendered.container("serving"), GenerateSettings)
    assert settings.run_dir == "/trainyard/shakespeare"
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)


def test_the_run_is_mounted_read_only_and_only_tmp_can_be_written(render: Render) -> None:
    for name in ("verify", "serving"):
        container = render("serving", *GENERATE).container(name)
        mounts = {
            item["mountPath"]: item.get("readOnly", False) for item in container["volumeMounts"]
        }
        assert mounts == {"/trainyard": True, "/tmp": False}


def test_another_claim_and_directory_can_be_named(render: Render) -> None:
    rendered = render("serving", "run=a", "claimName=big", "runDirectory=old/a")
    assert rendered.pod()["volumes"][0]["persistentVolumeClaim"]["claimName"] == "big"
    assert read(rendered.container("serving"), GenerateSettings).run_dir == "/trainyard/old/a"


@pytest.mark.parametrize(
    ("model", "step"),
    [("model=0", 0), ("model=best", "best"), ("model=last", "last"), ("", "last")],
)
def test_model_and_digest_are_the_same_for_the_check_and_for_the_server(
    render: Render, model: str, step: str | int
) -> None:
    digest = "sha256:" + "0a" * 32
    rendered = render("serving", *CLASSIFY, *filter(None, [model]), f"digest={digest}")
    for settings in (
        read(rendered.container("verify"), ModelSource),
        read(rendered.container("serving"), ClassifySettings),
    ):
        assert (settings.step, settings.digest) == (step, digest)


def test_sglang_gets_the_best_model_by_a_link(render: Render) -> None:
    rendered = render("serving", *SGLANG, "model=best")
    args = rendered.container("verify")["args"]
    assert args[args.index("--step") + 1] == "best"
    assert "--step" not in rendered.container("serving")["args"]
    assert "/models/current" in rendered.container("sglang")["args"]


def test_one_model_on_a_claim_can_be_served(render: Render) -> None:
    rendered = render("serving", "model=exported/gpt", "claimName=models")
    assert rendered.pod()["volumes"][0]["persistentVolumeClaim"]["claimName"] == "models"
    settings = read(rendered.container("serving"), GenerateSettings)
    assert (settings.model, settings.run_dir) == ("/trainyard/exported/gpt", None)
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert "trainyard.dev/serves" not in labels


@pytest.mark.parametrize(
    ("values", "app", "engine", "port"),
    [
        (GENERATE, "generate", None, 8000),
        (CLASSIFY, "classify", None, 7860),
        (ONNX, "classify", "onnx", 7860),
        (EMBED, "embed", None, 8000),
        (SGLANG, "generate", "sglang", 8000),
        (VISION, "vision", None, 8000),
    ],
)
def test_app_and_engine_accept_the_programs_values(
    render: Render, values: tuple[str, ...], app: str, engine: str | None, port: int
) -> None:
    rendered = render("serving", *values)
    container = rendered.container("serving")
    assert container["command"] == ["python", "-m", "trainyard_serving", app]
    flags = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert flags.get("--engine") == engine
    assert flags["--port"] == str(port)
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    annotations = rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)


def test_the_service_leads_to_the_server(render: Render) -> None:
    rendered = render("serving", *GENERATE)
    service, deployment = rendered.one("Service"), rendered.one("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_pod_keeps_to_the_restricted_standard(render: Render, shape: str) -> None:
    """Sidecar and test included; nothing but scratch volumes can be written to."""
    for spec in render("serving", *SHAPES[shape]).pod_specs():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
        for volume in spec.get("volumes", []):
            assert volume.get("emptyDir", {"sizeLimit": "1"})["sizeLimit"]


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_mount_has_its_volume_and_every_volume_a_mount(render: Render, shape: str) -> None:
    spec = render("serving", *SHAPES[shape]).pod()
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    mounted = {mount["name"] for item in containers for mount in item["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_nothing_collides_with_the_runs_own_objects(render: Render) -> None:
    """A run owns a Service of its name, whose selector is the label trainyard.dev/run."""
    rendered = render("serving", *GENERATE, *KEY, release="shakespeare")
    for manifest in rendered.manifests:
        assert manifest["metadata"]["name"].startswith("shakespeare-serving")
        assert "trainyard.dev/run" not in str(manifest)


@pytest.mark.parametrize("run", ["on", "null", "true", "y"])
def test_a_name_that_yaml_takes_for_something_else_stays_a_name(
    render: Render, tmp_path: Path, run: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f'run: "{run}"')
    rendered = render("serving", files=str(values))
    assert rendered.pod()["volumes"][0]["persistentVolumeClaim"]["claimName"] == run
    settings = read(rendered.container("serving"), GenerateSettings)
    assert settings.run_dir == f"/trainyard/{run}"
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert labels["trainyard.dev/serves"] == run


def test_there_is_time_to_drain(render: Render) -> None:
    for values in (GENERATE, SGLANG):
        rendered = render("serving", *values, "settings.drainSeconds=60")
        pause = rendered.container("serving")["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert rendered.pod()["terminationGracePeriodSeconds"] > pause + 60


def test_liveness_asks_health_and_readiness_asks_ready(render: Render) -> None:
    """Alive is not ready: a model that loads for long is no reason to restart."""
    container = render("serving", *GENERATE).container("serving")
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


def test_probes_send_the_key_where_health_asks_for_it(render: Render) -> None:
    container = render("serving", *GENERATE, *PROTECTED).container("serving")
    asked = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert "httpGet" not in container[probe]
        *program, url = container[probe]["exec"]["command"]
        assert program[:2] == ["python", "-c"]
        asked[probe] = url
    assert asked == {
        "startupProbe": "http://127.0.0.1:8000/health",
        "livenessProbe": "http://127.0.0.1:8000/health",
        "readinessProbe": "http://127.0.0.1:8000/ready",
    }


def test_a_key_without_protected_health_leaves_the_kubelets_probes(render: Render) -> None:
    container = render("serving", *GENERATE, *KEY).container("serving")
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}


def test_pods_are_spread_over_hosts(render: Render) -> None:
    rendered = render("serving", *GENERATE)
    (spread,) = rendered.pod()["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


def test_another_spread_replaces_it(render: Render) -> None:
    own: dict[str, Any] = {
        "maxSkew": 2,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
    }
    values = [f"topologySpreadConstraints[0].{key}={value}" for key, value in own.items()]
    assert render("serving", *GENERATE, *values).pod()["topologySpreadConstraints"] == [own]


def test_recreate_leaves_no_settings_of_rolling_updates(render: Render) -> None:
    deployment = render("serving", *GENERATE, "strategy.type=Recreate").one("Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_threads_follow_the_cpu_limit_unless_they_are_set(render: Render) -> None:
    def threads(*values: str) -> list[Any]:
        env = render("serving", *GENERATE, *values).container("serving")["env"]
        return [item for item in env if item["name"] == "TRAINYARD_SERVING_THREADS"]

    (item,) = threads()
    assert item["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    (item,) = threads("settings.threads=3")
    assert item["value"] == "3"


def test_models_of_a_bucket_need_no_claim(render: Render) -> None:
    values = ("run=a", "runDirectory=s3://bucket/runs/a", "s3.secretName=keys")
    rendered = render("serving", *values, "s3.endpoint=http://minio:9000")
    assert "persistentVolumeClaim" not in str(rendered.pod()["volumes"])
    for name in ("verify", "serving"):
        container = rendered.container(name)
        assert "s3://bucket/runs/a" in container["args"]
        assert "/models/s3" in container["args"], "one copy for the check and for the server"
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert {"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"} in container["env"]
        assert {"name": "models", "mountPath": "/models"} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("values", "ask"),
    [
        ((*GENERATE, "service.port=81", r"test.prompt=to be\, or not"), "to be, or not"),
        ((*CLASSIFY, "service.port=81", "test.text=A match."), "A match."),
        ((*EMBED, "service.port=81", "test.text=A match."), "A match."),
        ((*VISION, "service.port=81", "test.question=What?"), "What?"),
    ],
)
def test_helm_test_makes_a_prediction_through_the_service(
    render: Render, values: tuple[str, ...], ask: str
) -> None:
    rendered = render("serving", *values)
    (container,) = rendered.one("Pod")["spec"]["containers"]
    program = (CHARTS / "serving" / "files" / "predict.py").read_text()
    assert [*container["command"], *container["args"]] == ["python", "-c", program]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert env["HOST"] == rendered.one("Service")["metadata"]["name"]
    assert (env["PORT"], env["ASK"]) == ("81", ask)
    assert env["APP"] == rendered.container("serving")["command"][-1]
    assert rendered.one("Pod")["metadata"]["annotations"]["helm.sh/hook"] == "test"
