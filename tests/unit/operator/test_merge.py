"""Strategic merge of pod templates, as a table."""

import copy
from typing import Any

import pytest

from trainyard_operator.client import RejectedError
from trainyard_operator.merge import merge

CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("nothing", {"a": 1}, {}, {"a": 1}),
    ("a value is replaced", {"a": 1}, {"a": 2}, {"a": 2}),
    ("a key is added", {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    ("null deletes", {"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    ("null deletes what isn't there", {"b": 2}, {"a": None}, {"b": 2}),
    (
        "maps merge at every depth",
        {"nodeSelector": {"zone": "a", "disk": "ssd"}, "x": {"y": {"z": 1}}},
        {"nodeSelector": {"zone": "b", "disk": None}, "x": {"y": {"w": 2}}},
        {"nodeSelector": {"zone": "b"}, "x": {"y": {"z": 1, "w": 2}}},
    ),
    ("null inside a new map adds nothing", {}, {"m": {"a": None, "b": 1}}, {"m": {"b": 1}}),
    (
        "containers merge by name and keep their order",
        {"containers": [{"name": "trainer", "image": "a", "tty": True}]},
        {
            "containers": [
                {"name": "logger", "image": "l"},
                {"name": "trainer", "image": "b"},
            ]
        },
        {
            "containers": [
                {"name": "trainer", "image": "b", "tty": True},
                {"name": "logger", "image": "l"},
            ]
        },
    ),
    (
        "init containers are added",
        {},
        {"initContainers": [{"name": "fetch", "image": "i"}]},
        {"initContainers": [{"name": "fetch", "image": "i"}]},
    ),
    (
        "an environment variable is replaced as a whole",
        {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
        {
            "env": [
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}},
                {"name": "B", "value": "2"},
            ]
        },
    ),
    (
        "a volume changes its kind",
        {"volumes": [{"name": "tmp", "emptyDir": {}}]},
        {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}, {"name": "d", "nfs": {}}]},
        {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}, {"name": "d", "nfs": {}}]},
    ),
    (
        "mounts merge by path",
        {"volumeMounts": [{"name": "storage", "mountPath": "/trainyard"}]},
        {
            "volumeMounts": [
                {"name": "data", "mountPath": "/data"},
                {"mountPath": "/trainyard", "readOnly": True},
            ]
        },
        {
            "volumeMounts": [
                {"name": "storage", "mountPath": "/trainyard", "readOnly": True},
                {"name": "data", "mountPath": "/data"},
            ]
        },
    ),
    (
        "ports merge by number",
        {"ports": [{"name": "report", "containerPort": 9400}]},
        {"ports": [{"containerPort": 9400, "name": "r"}, {"containerPort": 22}]},
        {"ports": [{"name": "r", "containerPort": 9400}, {"containerPort": 22}]},
    ),
    (
        "tolerations are appended, once",
        {"tolerations": [{"key": "a"}]},
        {"tolerations": [{"key": "b"}, {"key": "a"}]},
        {"tolerations": [{"key": "a"}, {"key": "b"}]},
    ),
    (
        "other lists are replaced",
        {"command": ["torchrun", "-m", "x"], "args": ["a"]},
        {"command": ["sleep", "1"]},
        {"command": ["sleep", "1"], "args": ["a"]},
    ),
    (
        "deep inside a container",
        {"containers": [{"name": "trainer", "resources": {"limits": {"cpu": "1"}}}]},
        {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "1Gi"}}}]},
        {
            "containers": [
                {"name": "trainer", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}
            ]
        },
    ),
    (
        "a list's null deletes it",
        {"containers": [{"name": "t", "env": [{"name": "A"}]}]},
        {"containers": [{"name": "t", "env": None}]},
        {"containers": [{"name": "t"}]},
    ),
    ("another type wins", {"a": {"b": 1}}, {"a": "text"}, {"a": "text"}),
    ("a map over a value", {"a": "text"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
]


@pytest.mark.parametrize(("case", "base", "over", "expected"), CASES, ids=[c[0] for c in CASES])
def test_merge(
    case: str, base: dict[str, Any], over: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = copy.deepcopy((base, over))
    assert merge(base, over) == expected
    assert (base, over) == before, "merging must not change its arguments"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"volumes": ["data"]}, r"podTemplate.spec.volumes: .*object with name"),
        ({"volumes": [{"emptyDir": {}}]}, r"podTemplate.spec.volumes: .*object with name"),
        (
            {"containers": [{"name": "trainer", "env": [{"value": "1"}]}]},
            r"podTemplate.spec.containers\[trainer\].env: .*object with name",
        ),
        (
            {"containers": [{"name": "trainer", "volumeMounts": [{"name": "data"}]}]},
            r"volumeMounts: .*object with mountPath",
        ),
    ],
)
def test_items_without_the_merge_key_are_rejected(over: dict[str, Any], words: str) -> None:
    with pytest.raises(RejectedError, match=words):
        merge({"containers": [{"name": "trainer"}]}, over, "podTemplate.spec")
