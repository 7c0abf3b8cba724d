"""charts/serving: SGLang in the same pod, reachable only from there."""

from typing import Any

import pytest

from .conftest import Render
from .serving_values import GENERATE, HUB, KEY, S3_KEYS, SGLANG, VISION, VISION_CLAIM

ENGINES = {"run": SGLANG, "hub": HUB, "vision": VISION, "vision-claim": VISION_CLAIM}


def flags(container: dict[str, Any]) -> dict[str, str]:
    return dict(zip(container["args"][::2], container["args"][1::2], strict=True))


@pytest.mark.parametrize("shape", sorted(ENGINES))
def test_sglang_listens_on_loopback_where_the_gateway_asks(render: Render, shape: str) -> None:
    rendered = render("serving", *ENGINES[shape])
    engine = rendered.container("sglang")
    assert engine["command"] == ["python3", "-m", "sglang.launch_server"]
    assert flags(engine)["--host"] == "127.0.0.1"
    port = flags(engine)["--port"]
    gateway = flags(rendered.container("serving"))
    assert gateway["--sglang-url"] == f"http://127.0.0.1:{port}"
    assert "ports" not in engine
    (service,) = rendered.one("Service")["spec"]["ports"]
    assert service["targetPort"] == "http"


def test_sglang_runs_only_with_engine_sglang(render: Render) -> None:
    assert "sglang" not in str(render("serving", *GENERATE).manifests)


def test_sglang_is_up_before_the_gateway_and_gone_after_it(render: Render) -> None:
    """A sidecar: an init container that keeps running and is ended after the others."""
    names = [item["name"] for item in render("serving", *SGLANG).pod()["initContainers"]]
    assert names == ["verify", "sglang"]
    assert render("serving", *SGLANG).container("sglang")["restartPolicy"] == "Always"


def test_its_image_has_a_version_of_its_own(render: Render) -> None:
    values = (*SGLANG, "image.tag=ours")
    assert render("serving", *values).container("sglang")["image"] == "lmsysorg/sglang:v0.5.23"
    other = (*SGLANG, "sglang.image.repository=r/s", "sglang.image.tag=v9")
    assert render("serving", *other).container("sglang")["image"] == "r/s:v9"


@pytest.mark.parametrize("values", [SGLANG, VISION_CLAIM, ("engine=sglang", *S3_KEYS[1:])])
def test_sglang_reads_what_was_verified(render: Render, values: tuple[str, ...]) -> None:
    """The check comes first and leaves a link; SGLang and the gateway follow the same one."""
    rendered = render("serving", *values)
    verify, engine = rendered.container("verify"), rendered.container("sglang")
    link = verify["args"][verify["args"].index("--link") + 1]
    assert flags(engine)["--model-path"] == link
    if rendered.container("serving")["command"][-1] == "generate":
        assert flags(rendered.container("serving"))["--model"] == link
    folder = link.rpartition("/")[0]
    for container in (verify, engine):
        assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_a_hub_id_is_fetched_by_sglang_alone(render: Render) -> None:
    rendered = render("serving", *HUB, "sglang.revision=abc", "sglang.hubToken.secretName=hf")
    assert [item["name"] for item in rendered.pod()["initContainers"]] == ["sglang"]
    engine = rendered.container("sglang")
    assert flags(engine)["--model-path"] == "Qwen/Qwen2-0.5B-Instruct"
    assert flags(engine)["--revision"] == "abc"
    env = {item["name"]: item.get("value", item.get("valueFrom")) for item in engine["env"]}
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "HF_TOKEN"}}
    assert "HF_HUB_OFFLINE" not in env
    assert env["HF_HOME"].startswith("/models/")
    assert "HF_TOKEN" not in str(rendered.container("serving"))


def test_a_model_on_a_volume_is_never_fetched_from_the_hub(render: Render) -> None:
    for name in ("sglang", "serving"):
        env = render("serving", *SGLANG).container(name)["env"]
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in env


def test_it_gets_a_gpu_and_shared_memory(render: Render) -> None:
    rendered = render("serving", *SGLANG, "sglang.sharedMemory=2Gi")
    engine = rendered.container("sglang")
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "shm", "mountPath": "/dev/shm"} in engine["volumeMounts"]
    (volume,) = [item for item in rendered.pod()["volumes"] if item["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert "nvidia.com/gpu" not in str(rendered.container("serving")["resources"])


def test_its_probes_run_where_its_port_is(render: Render) -> None:
    """The kubelet's httpGet comes from outside and would not reach loopback."""
    engine = render("serving", *SGLANG, "sglang.startupSeconds=601").container("sglang")
    for probe, path in ((engine["startupProbe"], "/ready"), (engine["livenessProbe"], "/health")):
        program, _, code = probe["exec"]["command"]
        assert program == "python3"
        assert f"http://127.0.0.1:30000{path}" in code
        compile(code, "probe", "exec")
    startup = engine["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 601


def test_names_agree_between_the_two(render: Render) -> None:
    def name(*values: str) -> str:
        return flags(render("serving", *values).container("sglang"))["--served-model-name"]

    assert name(*SGLANG) == "shakespeare"
    assert name(*HUB) == "Qwen/Qwen2-0.5B-Instruct"
    assert name(*SGLANG, "settings.servedModelName=bard") == "bard"
    assert name(*VISION, "settings.modelName=eyes") == "eyes"


def test_further_flags_and_variables_reach_it(render: Render) -> None:
    values = ('sglang.args:=["--tp-size","2"]', 'sglang.env:=[{"name":"A","value":"b"}]')
    engine = render("serving", *SGLANG, *values).container("sglang")
    assert flags(engine)["--tp-size"] == "2"
    assert {"name": "A", "value": "b"} in engine["env"]


def test_the_api_key_is_the_gateways_alone(render: Render) -> None:
    assert "API_KEY" not in str(render("serving", *SGLANG, *KEY).container("sglang"))
