"""Gang scheduling by a queueing system: its labels on the pods, and its PodGroup object."""

from typing import Any

from trainyard_api.run import TrainingRun


def group_name(run: TrainingRun, attempt: int) -> str:
    """Every attempt is a gang of its own."""
    return f"{run.name}-{attempt}"


def mark(run: TrainingRun, attempt: int, nodes: int) -> dict[str, Any]:
    """What a pod must say to belong to its gang: parts of metadata and spec."""
    queue = run.spec.queue
    group = group_name(run, attempt)
    match queue.system if queue else None:
        case "kueue":
            assert queue is not None
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
        case _:
            return {}


def pod_group(run: TrainingRun, nodes: int, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The PodGroup, for the systems that have one; `metadata` names it as `group_name` does."""
    queue = run.spec.queue
    match queue.system if queue else None:
        case "volcano":
            assert queue is not None
            return {
                "apiVersion": "scheduling.volcano.sh/v1beta1",
                "kind": "PodGroup",
                "metadata": metadata,
                "spec": {"minMember": nodes, "queue": queue.name},
            }
        case "coscheduling":
            return {
                "apiVersion": "scheduling.x-k8s.io/v1alpha1",
                "kind": "PodGroup",
                "metadata": metadata,
                "spec": {"minMember": nodes},
            }
        case _:
            return None
