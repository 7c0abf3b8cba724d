"""Which GPUs of a machine the workers of a run may see."""

from pathlib import Path
from typing import Any

import pytest

from trainyard_api.run import TrainingRun
from trainyard_local import gpus


def make_run(asked: int = 0, nodes: int = 1, **spec: Any) -> TrainingRun:
    resources = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": asked}}} if asked else {}
    return TrainingRun.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "run"},
            "spec": {"recipe": "char-gpt", "numNodes": nodes, **resources, **spec},
        }
    )


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpu_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("setting", "visible"),
    [
        (None, ["0,1", "2,3"]),
        ("3,2,1,0", ["3,2", "1,0"]),
        ("GPU-aa, GPU-bb,GPU-cc,GPU-dd", ["GPU-aa,GPU-bb", "GPU-cc,GPU-dd"]),
        ("MIG-a,MIG-b,MIG-c,MIG-d,MIG-e", ["MIG-a,MIG-b", "MIG-c,MIG-d"]),
    ],
)
def test_each_node_has_gpus_of_its_own(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch, setting: str | None, visible: list[str]
) -> None:
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    run = make_run(asked=2, nodes=2)
    assert gpus.too_few(run) is None
    assert [gpus.of_node(run, node)["CUDA_VISIBLE_DEVICES"] for node in (0, 1)] == visible


def test_the_manifest_may_name_the_gpus(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    env = [{"name": "CUDA_VISIBLE_DEVICES", "value": "2,3"}]
    template = {"spec": {"containers": [{"name": "trainer", "env": env}]}}
    run = make_run(asked=1, nodes=2, podTemplate=template)
    assert gpus.of_node(run, 1) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_gpus_that_were_not_asked_for_are_not_seen(four_gpus: None) -> None:
    run = make_run(numProcPerNode=2)
    assert gpus.too_few(run) is None
    assert gpus.of_node(run, 0) == {"CUDA_VISIBLE_DEVICES": ""}
    assert str(gpus.unused(run)).startswith("this machine has 4 GPUs that the run doesn't ask for")
    assert gpus.unused(make_run(asked=1)) is None


@pytest.mark.parametrize(
    ("setting", "available"),
    [
        (None, "4"),
        ("0,-1,2", "4, of which CUDA_VISIBLE_DEVICES allows 1"),
        ("", "4, of which CUDA_VISIBLE_DEVICES allows none"),
    ],
)
def test_the_nodes_together_need_no_more_than_there_are(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch, setting: str | None, available: str
) -> None:
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert gpus.too_few(make_run(asked=3, nodes=2)) == (
        "the run requests 3 nvidia.com/gpu per node for 2 nodes, but this machine has"
        f" {available}: remove the limit to train on CPUs, or use a machine with GPUs"
    )


def test_a_script_sees_no_gpu_that_its_run_did_not_ask_for(box: Any) -> None:
    script = '#!/bin/sh\necho "visible: [$CUDA_VISIBLE_DEVICES]" > "$TRAINYARD_RUN_DIR/seen"\n'
    manifest = box.manifest("run", command=[box.script("torchrun", script)])
    code, output = box.cli("run", manifest, CUDA_VISIBLE_DEVICES="0,1")
    assert code == 0, output
    seen: Path = box.run_dir("run") / "data" / "seen"
    assert seen.read_text() == "visible: []\n"
