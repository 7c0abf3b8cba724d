"""The objects made for a run."""

import json
from typing import Any

import pytest

from tests.support.lifecycle.builders import T0, make_run
from trainyard_api.status import CheckpointRef
from trainyard_lifecycle.plan import WorkerKey
from trainyard_operator import manifests
from trainyard_operator.client import RejectedError


def with_agent(node: int = 0, **spec: Any) -> dict[str, Any]:
    images = manifests.Images("ours:1", "agent:1")
    return manifests.pod(make_run(**spec), WorkerKey(1, node), 2, images)


def pod(node: int = 0, attempt: int = 1, nodes: int = 2, **spec: Any) -> dict[str, Any]:
    return manifests.pod(
        make_run(**spec), WorkerKey(attempt, node), nodes, manifests.Images("ours:1")
    )


def trainer(built: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in built["spec"]["containers"] if item["name"] == "trainer")


def env(built: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in trainer(built)["env"]}


def mounts(built: dict[str, Any]) -> dict[str, str]:
    names = {volume["name"] for volume in built["spec"]["volumes"]}
    found = {item["mountPath"]: item["name"] for item in trainer(built)["volumeMounts"]}
    assert set(found.values()) <= names
    return found


def test_pod_is_named_after_attempt_and_node_and_findable_by_that_name() -> None:
    built = pod(node=1, attempt=3)
    assert built["metadata"]["name"] == built["spec"]["hostname"] == "r-3-1"
    assert built["spec"]["subdomain"] == manifests.service(make_run())["metadata"]["name"] == "r"
    assert built["metadata"]["namespace"] == "ns"
    assert built["metadata"]["labels"] == {
        "trainyard.dev/run": "r",
        "trainyard.dev/attempt": "3",
        "trainyard.dev/node": "1",
        "app.kubernetes.io/managed-by": "trainyard",
    }
    assert env(built)["PET_RDZV_ENDPOINT"] == "r-3-0.r:29400"
    assert env(built)["PET_LOCAL_ADDR"] == "r-3-1.r"


def test_everything_is_owned_by_the_run() -> None:
    claim = manifests.claim(make_run())
    assert claim
    for item in (pod(), manifests.service(make_run()), claim):
        [owner] = item["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("TrainingRun", "r", "u")
        assert owner["controller"] is True


def test_service_is_headless_and_names_pods_that_are_not_ready() -> None:
    spec = manifests.service(make_run())["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    assert spec["selector"].items() <= pod()["metadata"]["labels"].items()


def test_pod_meets_the_restricted_standard() -> None:
    spec = pod(image="mine:1")["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = spec["containers"][0]["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"
    assert all(set(volume) & {"persistentVolumeClaim", "emptyDir"} for volume in spec["volumes"])


def test_our_image_has_a_read_only_root_and_a_writable_tmp() -> None:
    built = pod()
    assert trainer(built)["image"] == "ours:1"
    assert trainer(built)["securityContext"]["readOnlyRootFilesystem"] is True
    assert mounts(built)["/tmp"] == "tmp"
    theirs = pod(image="mine:1")
    assert trainer(theirs)["image"] == "mine:1"
    assert trainer(theirs)["securityContext"]["readOnlyRootFilesystem"] is False
    assert "/tmp" not in mounts(theirs)


def test_torchrun_has_time_to_end_its_workers() -> None:
    def grace(built: dict[str, Any]) -> tuple[int, int, int]:
        """Seconds until torchrun, the agent and the kubelet kill what is left."""
        variables = env(built)
        torchrun, agent = variables["PET_SHUTDOWN_TIMEOUT"], variables["TRAINYARD_GRACE_SECONDS"]
        return int(torchrun), int(agent), built["spec"]["terminationGracePeriodSeconds"]

    assert grace(pod()) == (25, 28, 30)
    longer = {"spec": {"terminationGracePeriodSeconds": 300}}
    assert grace(pod(podTemplate=longer)) == (295, 298, 300)


def test_the_termination_message_falls_back_to_the_log() -> None:
    container = trainer(pod())
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["terminationMessagePath"] == env(pod())["TRAINYARD_RESULT_FILE"]
    # torchrun removes this file before it writes it, and a mount point can't be removed.
    assert "TORCHELASTIC_ERROR_FILE" not in env(pod())


def test_pods_of_a_lost_node_are_evicted_soon() -> None:
    found = {item["key"]: item for item in pod()["spec"]["tolerations"]}
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        assert found[key]["effect"] == "NoExecute"
        assert found[key]["tolerationSeconds"] == 15


def test_gpus() -> None:
    built = pod(resourcesPerNode={"limits": {"nvidia.com/gpu": 4, "memory": "8Gi"}})
    assert trainer(built)["resources"] == {
        "limits": {"nvidia.com/gpu": "4", "memory": "8Gi"},
        "requests": {},
    }
    assert env(built)["PET_NPROC_PER_NODE"] == "4"
    assert mounts(built)["/dev/shm"] == "shm"
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in built["spec"]["volumes"]


def test_shared_memory_only_where_processes_share() -> None:
    assert "/dev/shm" not in mounts(pod())
    assert "/dev/shm" in mounts(pod(numProcPerNode=2))


@pytest.mark.parametrize(
    ("limit", "nproc", "threads"),
    [
        ("4", 1, "4"),
        ("4", 2, "2"),
        ("500m", 1, "1"),
        ("3", 2, "1"),
        (None, 1, None),
        ("0", 1, None),
    ],
)
def test_threads_follow_the_cpu_limit(limit: str | None, nproc: int, threads: str | None) -> None:
    spec: dict[str, Any] = {"numProcPerNode": nproc}
    if limit is not None:
        spec["resourcesPerNode"] = {"limits": {"cpu": limit}}
    assert env(pod(**spec)).get("OMP_NUM_THREADS") == threads


def test_threads_follow_the_cpu_request_where_there_is_no_limit() -> None:
    resources: dict[str, Any] = {"requests": {"cpu": 2}}
    assert env(pod(resourcesPerNode=resources))["OMP_NUM_THREADS"] == "2"
    resources["limits"] = {"cpu": 4}
    assert env(pod(resourcesPerNode=resources))["OMP_NUM_THREADS"] == "4"


def test_dollar_signs_are_literal() -> None:
    built = pod(command=["sh", "-c", "echo $(date) $HOME"], image="mine:1")
    assert trainer(built)["command"][-1] == "echo $$(date) $HOME"
    built = pod(config={"prompt": "$(HOME)"})
    assert '"prompt":"$$(HOME)"' in env(built)["TRAINYARD_JOB"]


def test_claim_defaults() -> None:
    claim = manifests.claim(make_run(numNodes=1))
    assert claim
    assert claim["metadata"]["name"] == "r"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Gi"}},
    }


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ({"numNodes": 1}, "ReadWriteOnce"),
        ({"numNodes": 2}, "ReadWriteMany"),
        ({"numNodes": 1, "elastic": {"minNodes": 1, "maxNodes": 2}}, "ReadWriteMany"),
        ({"numNodes": 2, "storage": {"accessMode": "ReadWriteOnce"}}, "ReadWriteOnce"),
    ],
)
def test_claim_access_mode(spec: dict[str, Any], mode: str) -> None:
    claim = manifests.claim(make_run(**spec))
    assert claim
    assert claim["spec"]["accessModes"] == [mode]


def test_claim_as_specified() -> None:
    storage = {"size": "1Ti", "storageClassName": "fast", "whenDeleted": "Retain"}
    claim = manifests.claim(make_run(storage=storage))
    assert claim
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert "ownerReferences" not in claim["metadata"], "a retained claim outlives its run"


def test_users_own_claim() -> None:
    storage = {"claimName": "mine"}
    assert manifests.claim(make_run(storage=storage)) is None
    [volume] = [v for v in pod(storage=storage)["spec"]["volumes"] if v["name"] == "storage"]
    assert volume["persistentVolumeClaim"] == {"claimName": "mine"}


def job_of(built: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(env(built)["TRAINYARD_JOB"]))


def test_the_claim_of_another_run_is_mounted_read_only_until_it_is_not_needed() -> None:
    run = make_run(startFrom={"run": "a"})
    built = manifests.pod(run, WorkerKey(1, 0), 2, manifests.Images("ours:1"))
    claims = {v["name"]: v.get("persistentVolumeClaim") for v in built["spec"]["volumes"]}
    assert claims["start"] == {"claimName": "a", "readOnly": True}
    mount = {"name": "start", "mountPath": "/trainyard-start", "readOnly": True}
    assert mount in trainer(built)["volumeMounts"]
    assert job_of(built)["startDir"] == "/trainyard-start/a"

    own = CheckpointRef(step=4, digest="sha256:0", time=T0)
    run.status.last_checkpoint = own
    built = manifests.pod(run, WorkerKey(2, 0), 2, manifests.Images("ours:1"))
    assert "start" not in mounts(built).values()
    assert job_of(built)["startFrom"]["run"] == "a"
    assert "startDir" not in job_of(built)


def test_a_script_finds_another_run_in_every_attempt() -> None:
    """It may build its model from the other run's before it loads its own checkpoint."""
    run = make_run(command=["train.py"], startFrom={"run": "a"})
    run.status.last_checkpoint = CheckpointRef(step=4, digest="sha256:0", time=T0)
    built = manifests.pod(run, WorkerKey(2, 0), 2, manifests.Images("ours:1"))
    mount = {"name": "start", "mountPath": "/trainyard-start", "readOnly": True}
    assert mount in trainer(built)["volumeMounts"]
    assert env(built)["TRAINYARD_START_DIR"] == "/trainyard-start/a"


def test_another_run_on_the_same_claim_or_in_a_path_needs_no_second_mount() -> None:
    shared = pod(storage={"claimName": "c"}, startFrom={"run": "a", "claimName": "c"})
    assert "start" not in mounts(shared).values()
    assert job_of(shared)["startDir"] == "/trainyard/a"
    path = pod(startFrom={"path": "/mnt/step-00000004"})
    assert "start" not in mounts(path).values()
    assert job_of(path)["startDir"] == "/mnt/step-00000004"
    assert job_of(pod(startFrom={"run": "a", "claimName": "c"}))["startDir"] == "/trainyard-start/a"


def test_template_overrides_but_a_worker_stays_a_worker() -> None:
    built = pod(
        podTemplate={
            "metadata": {"labels": {"team": "a", "trainyard.dev/run": "other"}},
            "spec": {
                "nodeSelector": {"disk": "ssd"},
                "restartPolicy": "Always",
                "hostname": "other",
                "containers": [
                    {"name": "trainer", "env": [{"name": "WANDB_MODE", "value": "offline"}]},
                    {"name": "sidecar", "image": "s:1"},
                ],
            },
        }
    )
    assert built["metadata"]["labels"]["team"] == "a"
    assert built["metadata"]["labels"]["trainyard.dev/run"] == "r"
    spec = built["spec"]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert (spec["restartPolicy"], spec["hostname"]) == ("Never", "r-1-0")
    assert env(built)["WANDB_MODE"] == "offline"
    assert env(built)["PET_NNODES"] == "2"
    assert [container["name"] for container in spec["containers"]] == ["trainer", "sidecar"]


def test_host_network_uses_the_clusters_dns() -> None:
    assert pod(podTemplate={"spec": {"hostNetwork": True}})["spec"]["dnsPolicy"] == (
        "ClusterFirstWithHostNet"
    )


def test_without_an_agent_prometheus_finds_rank_0_unless_overridden() -> None:
    assert pod(node=0)["metadata"]["annotations"]["prometheus.io/port"] == "9400"
    assert "prometheus.io/scrape" not in pod(node=1)["metadata"]["annotations"]
    own = pod(node=0, command=["train.py"])
    assert "prometheus.io/scrape" not in own["metadata"]["annotations"]
    quiet = {"metadata": {"annotations": {"prometheus.io/scrape": "false", "a": "b"}}}
    found = pod(node=0, podTemplate=quiet)["metadata"]["annotations"]
    assert (found["prometheus.io/scrape"], found["a"]) == ("false", "b")


def test_bad_template_is_rejected_in_one_line() -> None:
    with pytest.raises(RejectedError, match=r"podTemplate.spec.containers\[trainer\].ports"):
        pod(podTemplate={"spec": {"containers": [{"name": "trainer", "ports": [{"name": "a"}]}]}})


def test_kueue() -> None:
    metadata = pod(queue={"name": "q"}, attempt=2)["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert metadata["labels"]["kueue.x-k8s.io/pod-group-name"] == "r-2"
    assert metadata["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    assert manifests.pod_group(make_run(queue={"name": "q"}), 2, 2) is None


@pytest.mark.parametrize(
    ("system", "api", "scheduler"),
    [
        ("volcano", "scheduling.volcano.sh/v1beta1", "volcano"),
        ("coscheduling", "scheduling.x-k8s.io/v1alpha1", "scheduler-plugins-scheduler"),
    ],
)
def test_pod_groups(system: str, api: str, scheduler: str) -> None:
    queue = {"name": "q", "system": system}
    built = pod(queue=queue, attempt=2)
    metadata = built["metadata"]
    marks = {**metadata["labels"], **metadata.get("annotations", {})}
    assert "r-2" in marks.values()
    assert built["spec"]["schedulerName"] == scheduler
    group = manifests.pod_group(make_run(queue=queue), 2, 2)
    assert group
    assert (group["apiVersion"], group["metadata"]["name"]) == (api, "r-2")
    assert group["spec"]["minMember"] == 2


def test_no_queue_no_group() -> None:
    assert manifests.pod_group(make_run(), 1, 2) is None
    assert "schedulerName" not in pod()["spec"]


def env_of(built: dict[str, Any]) -> dict[str, str]:
    (container,) = built["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("spec", [{}, {"recipe": None, "image": "x", "command": ["train.py"]}])
def test_the_agent_starts_what_torchrun_would_have(spec: dict[str, Any]) -> None:
    without, built = pod(**spec), with_agent(**spec)
    (container,) = built["spec"]["containers"]
    (before,) = without["spec"]["containers"]
    worker = "/trainyard-agent/worker"
    start = ["/trainyard-agent/busybox", "sh", "/trainyard-agent/start.sh", worker]
    assert container["command"] == [*start, *before["command"]]
    assert {"name": "agent", "mountPath": "/trainyard-agent"} in container["volumeMounts"]
    variables = env_of(built)
    assert variables["TRAINYARD_WORKER_DIR"] == worker
    assert variables["TRAINYARD_TERMINATION_LOG"] == container["terminationMessagePath"]
    # What the trainer and torchrun leave is the agent's to read.
    assert variables["TRAINYARD_RESULT_FILE"] == f"{worker}/result"
    assert variables["TORCHELASTIC_ERROR_FILE"] == f"{worker}/error.json"
    assert variables["PET_LOG_DIR"].startswith(worker)


def test_the_agent_comes_by_an_init_container_that_any_policy_admits() -> None:
    (init,) = with_agent()["spec"]["initContainers"]
    assert init["image"] == "agent:1"
    assert init["volumeMounts"] == [{"name": "agent", "mountPath": "/trainyard-agent"}]
    # Quotas ask for both; the same amounts keep a pod Guaranteed.
    assert init["resources"]["requests"] == init["resources"]["limits"]
    assert init["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_init_containers_of_the_template_come_after_the_agents() -> None:
    template = {"spec": {"initContainers": [{"name": "fetch", "image": "f"}]}}
    built = with_agent(podTemplate=template)
    assert [each["name"] for each in built["spec"]["initContainers"]] == [
        "trainyard-agent",
        "fetch",
    ]


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("what", [{"recipe": None, "image": "x", "command": ["train.py"]}, {}])
def test_prometheus_finds_the_agent_of_every_node(node: int, what: dict[str, Any]) -> None:
    built = with_agent(node, **what)
    assert built["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert env_of(built)["TRAINYARD_NODE"] == str(node)


def test_the_trainer_beside_an_agent_reports_on_another_port() -> None:
    variables = env_of(with_agent())
    assert variables["TRAINYARD_REPORT_PORT"] == "9400"
    assert variables["TRAINYARD_TRAINER_PORT"] == "9401"
    assert json.loads(variables["TRAINYARD_JOB"])["reportPort"] == 9401


def test_a_command_of_the_template_starts_without_an_agent() -> None:
    """What the trainer leaves is then the pod's termination message, as nobody else writes it."""
    own = {"name": "trainer", "command": ["sh", "-c", "torchrun -m trainyard_trainer"]}
    template = {"spec": {"containers": [own]}}
    built = with_agent(podTemplate=template)
    assert "initContainers" not in built["spec"]
    assert built["spec"] == pod(podTemplate=template)["spec"]
