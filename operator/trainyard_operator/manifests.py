"""The objects of a run: headless Service, volume claim, PodGroup, pods. Pure.

PodGroups and the marks on pods are what queueing systems need to schedule a gang as a whole.
"""

from dataclasses import dataclass
from typing import Any

from trainyard_api import labels
from trainyard_api.job import (
    ERROR_FILE,
    MOUNT_PATH,
    RESULT_FILE,
    START_PATH,
    TERMINATION_LOG_ENV,
    WORKER_DIR_ENV,
)
from trainyard_api.progress import REPORT_PORT, TRAINER_PORT
from trainyard_api.run import TrainingRun
from trainyard_lifecycle import launch
from trainyard_lifecycle.plan import WorkerKey, worker_name
from trainyard_operator.merge import merge
from trainyard_operator.objects import owner_reference

DEFAULT_SIZE = "10Gi"
USER_ID = 10001
AGENT_PATH = "/trainyard-agent"
TERMINATION_LOG = "/dev/termination-log"
# Pods of a node that stops answering are evicted after this long (Kubernetes' default: 300 s).
LOST_NODE_SECONDS = 15


def owned(run: TrainingRun, name: str, **extra_labels: str) -> dict[str, Any]:
    """Metadata of an object that belongs to the run and is deleted with it."""
    return {
        "name": name,
        "namespace": run.namespace,
        "labels": {labels.RUN: run.name, labels.MANAGED_BY: labels.MANAGER, **extra_labels},
        "ownerReferences": [owner_reference(run)],
    }


def service(run: TrainingRun) -> dict[str, Any]:
    """Headless Service: gives every pod a host name, even before it is ready (rendezvous)."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(run, run.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {labels.RUN: run.name},
            "ports": [
                {"name": "rendezvous", "port": launch.RDZV_PORT},
                {"name": "report", "port": REPORT_PORT},
            ],
        },
    }


def claim(run: TrainingRun) -> dict[str, Any] | None:
    """The volume claim; None if the run names an existing one."""
    storage = run.spec.storage
    if storage and storage.claim_name:
        return None
    metadata = owned(run, run.claim_name)
    if run.when_deleted == "Retain":
        del metadata["ownerReferences"]
    most = run.spec.elastic.max_nodes if run.spec.elastic else run.spec.num_nodes
    mode = "ReadWriteMany" if most > 1 else "ReadWriteOnce"
    spec: dict[str, Any] = {
        "accessModes": [(storage and storage.access_mode) or mode],
        "resources": {"requests": {"storage": (storage and storage.size) or DEFAULT_SIZE}},
    }
    if storage and storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
    }


def pod_group(run: TrainingRun, attempt: int, nodes: int) -> dict[str, Any] | None:
    """The gang's PodGroup, for the queueing systems that have such objects."""
    queue = run.spec.queue
    if queue is None or queue.system == "kueue":
        return None
    group: dict[str, Any] = {
        "kind": "PodGroup",
        "metadata": owned(run, _gang_name(run, attempt)),
        "spec": {"minMember": nodes},
    }
    if queue.system == "volcano":
        group["spec"]["queue"] = queue.name
        return {"apiVersion": "scheduling.volcano.sh/v1beta1", **group}
    return {"apiVersion": "scheduling.x-k8s.io/v1alpha1", **group}


def _gang_name(run: TrainingRun, attempt: int) -> str:
    """Every attempt is a gang of its own."""
    return f"{run.name}-{attempt}"


def _gang_marks(run: TrainingRun, attempt: int, nodes: int) -> dict[str, Any]:
    """What a pod needs to belong to its gang: parts of metadata and spec."""
    queue = run.spec.queue
    if queue is None:
        return {}
    group = _gang_name(run, attempt)
    match queue.system:
        case "kueue":
            return {
                "metadata": {
                    "labels": {
                        "kueue.x-k8s.io/queue-name": queue.name,
                        "kueue.x-k8s.io/pod-group-name": group,
                    },
                    "annotations": {"kueue.x-k8s.io/pod-group-total-count": str(nodes)},
                },
            }
        case "volcano":
            return {
                "metadata": {"annotations": {"scheduling.k8s.io/group-name": group}},
                "spec": {"schedulerName": "volcano"},
            }
        case "coscheduling":
            return {
                "metadata": {"labels": {"scheduling.x-k8s.io/pod-group": group}},
                "spec": {"schedulerName": "scheduler-plugins-scheduler"},
            }


@dataclass(frozen=True)
class Images:
    """The images of our own in a run's pods.

    Attributes:
        trainer: of runs that name none.
        agent: brings the agent into the trainer container; empty: torchrun is started without.
    """

    trainer: str
    agent: str = ""


def pod(run: TrainingRun, key: WorkerKey, nodes: int, images: Images) -> dict[str, Any]:
    """The pod of one worker in a gang of `nodes`.

    Raises RejectedError when the pod template can't be merged.
    """
    if _has_own_command(run):
        images = Images(images.trainer)
    name = worker_name(run.name, key.attempt, key.node)
    built: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": owned(
            run, name, **{labels.ATTEMPT: str(key.attempt), labels.NODE: str(key.node)}
        ),
        "spec": {
            "tolerations": _tolerations(run),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _grace_seconds(run),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(run, key, nodes, images)],
            "volumes": _volumes(run, images),
        },
    }
    if images.agent:
        built["spec"]["initContainers"] = [_agent_container(images.agent)]
    # Agents report on their own ranks. Without one, rank 0 of a recipe reports for all, and nothing
    # is known of what a user's command serves.
    reports = images.agent or (run.spec.recipe and key.node == 0)
    built["metadata"]["annotations"] = _SCRAPE if reports else {}
    built = merge(built, _gang_marks(run, key.attempt, nodes))
    template = run.spec.pod_template
    if template:
        spec = merge(built["spec"], template.spec, "podTemplate.spec")
        if spec.get("hostNetwork"):
            spec.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
        metadata = merge(template.metadata.to_wire(), built["metadata"])  # our labels win
        metadata["annotations"] = built["metadata"]["annotations"] | template.metadata.annotations
        built |= {"metadata": metadata, "spec": spec}
    # What makes it a worker can't be overridden: it never restarts, and peers know its host name.
    built["spec"] |= {"restartPolicy": "Never", "hostname": name, "subdomain": run.name}
    return built


def _grace_seconds(run: TrainingRun) -> int:
    """The pod template's: torchrun and the agent must know it, too."""
    template = run.spec.pod_template
    seconds = template.spec.get("terminationGracePeriodSeconds") if template else None
    return seconds if isinstance(seconds, int) else launch.GRACE_SECONDS


def _has_own_command(run: TrainingRun) -> bool:
    """Whether the pod template replaces the trainer's command, which would start the agent."""
    template = run.spec.pod_template
    containers = (template.spec.get("containers") or []) if template else []
    return any(each.get("name") == labels.CONTAINER and "command" in each for each in containers)


def _agent_container(image: str) -> dict[str, Any]:
    """Copies the agent into the pod, and ends. The same request as limit keeps a pod Guaranteed."""
    amounts = {"cpu": "100m", "memory": "32Mi"}
    return {
        "name": labels.AGENT_CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [_mount("agent")],
    }


def _container(run: TrainingRun, key: WorkerKey, nodes: int, images: Images) -> dict[str, Any]:
    variables: dict[str, str] = {"HOME": "/tmp", "USER": "trainyard", **_threads(run)}
    worker = f"{AGENT_PATH}/worker"
    target = launch.LaunchTarget(
        endpoint=f"{worker_name(run.name, key.attempt, 0)}.{run.name}:{launch.RDZV_PORT}",
        address_of=lambda node: f"{worker_name(run.name, key.attempt, node)}.{run.name}",
        run_dir=f"{MOUNT_PATH}/{run.name}",
        report_port=REPORT_PORT,
        trainer_port=TRAINER_PORT if images.agent else REPORT_PORT,
        result_file=f"{worker}/{RESULT_FILE}" if images.agent else TERMINATION_LOG,
        error_file=f"{worker}/{ERROR_FILE}" if images.agent else None,
        log_dir=f"{worker}/torchelastic" if images.agent else "/tmp/torchelastic",
        start_dir=_start_dir(run),
        grace_seconds=_grace_seconds(run),
    )
    variables |= launch.env(run, key, nodes, target)
    command = launch.argv(run)
    if images.agent:
        variables |= {WORKER_DIR_ENV: worker, TERMINATION_LOG_ENV: TERMINATION_LOG}
        # A shell of its own, as an image may have none.
        command = [f"{AGENT_PATH}/busybox", "sh", f"{AGENT_PATH}/start.sh", worker, *command]
    ours = run.spec.image is None
    container: dict[str, Any] = {
        "name": labels.CONTAINER,
        "image": run.spec.image or images.trainer,
        "command": [_literal(word) for word in command],
        "env": [{"name": key, "value": _literal(value)} for key, value in variables.items()],
        "ports": [{"name": "report", "containerPort": REPORT_PORT}],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # A user's image may write anywhere.
            "readOnlyRootFilesystem": ours,
        },
        "volumeMounts": [_mount(volume["name"]) for volume in _volumes(run, images)],
    }
    if ours:
        container["imagePullPolicy"] = "IfNotPresent"
    if run.spec.resources_per_node:
        container["resources"] = run.spec.resources_per_node.to_wire()
    return container


_SCRAPE = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(REPORT_PORT),
    "prometheus.io/path": "/metrics",
}
_MOUNTS = {
    "storage": MOUNT_PATH,
    "start": START_PATH,
    "agent": AGENT_PATH,
    "shm": "/dev/shm",
    "tmp": "/tmp",
}


def _mount(volume: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": volume, "mountPath": _MOUNTS[volume]}
    return mount | {"readOnly": True} if volume == "start" else mount


def _start_claim(run: TrainingRun) -> str | None:
    """The claim of spec.startFrom.run, while it is needed.

    A recipe needs it until there is an own checkpoint, which it saves first. A script may build its
    model from the other run's in every attempt.
    """
    start = run.spec.start_from
    if start is None or start.run is None:
        return None
    if run.spec.recipe is not None and run.status.last_checkpoint:
        return None
    return start.claim_name or start.run


def _start_dir(run: TrainingRun) -> str | None:
    start, claim = run.spec.start_from, _start_claim(run)
    if start is None or claim is None:
        return start.path if start else None
    mounted = MOUNT_PATH if claim == run.claim_name else START_PATH
    return f"{mounted}/{start.run}"


def _volumes(run: TrainingRun, images: Images) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "storage", "persistentVolumeClaim": {"claimName": run.claim_name}}
    ]
    start = _start_claim(run)
    if start is not None and start != run.claim_name:
        source = {"claimName": start, "readOnly": True}
        volumes.append({"name": "start", "persistentVolumeClaim": source})
    if images.agent:
        volumes.append({"name": "agent", "emptyDir": {}})
    if run.asks_for_gpus or run.nproc > 1:
        # Data loaders and NCCL share memory between processes; a container's default is 64 MiB.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    if run.spec.image is None:
        volumes.append({"name": "tmp", "emptyDir": {}})
    return volumes


def _tolerations(run: TrainingRun) -> list[dict[str, Any]]:
    tolerations: list[dict[str, Any]] = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]
    tolerations += (
        {"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in run.gpu_taints
    )
    return tolerations


def _threads(run: TrainingRun) -> dict[str, str]:
    """PyTorch counts the machine's cores, not the container's: limit it to its share."""
    cores = launch.requested_cpus(run)
    return {"OMP_NUM_THREADS": str(max(1, int(cores / run.nproc)))} if cores else {}


def _literal(text: str) -> str:
    """Kubernetes expands $(NAME) in commands and values; ours are literal."""
    return text.replace("$(", "$$(")
