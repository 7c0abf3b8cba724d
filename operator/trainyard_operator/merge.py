"""Strategic merge of a pod template over the pod we build: what kubectl patch does by default.

Maps merge, null deletes a key, lists of named things merge by their key, other lists are replaced.
No Python package does this: the merge keys are Go struct tags, and the API server applies them only
to objects that exist already.
"""

from typing import Any

from trainyard_operator.client import RejectedError

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
# Their items are one of several kinds: merging two kinds would make neither.
_REPLACED = ("env", "volumes")
# Kubernetes replaces this list. But our tolerations make lost nodes known, and a user's say where
# pods may run: both are needed.
_APPENDED = ("tolerations",)


def merge(base: dict[str, Any], over: dict[str, Any], path: str = "") -> dict[str, Any]:
    """`over` merged into `base`; neither is changed. `path` is for messages.

    Raises RejectedError when a list that merges by a key holds something without that key.
    """
    merged = dict(base)
    for name, value in over.items():
        where = f"{path}.{name}" if path else name
        old = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif name in _KEYS and isinstance(value, list):
            merged[name] = _merge_list(name, old or [], value, where)
        elif name in _APPENDED and isinstance(value, list):
            merged[name] = [*(old or []), *(item for item in value if item not in (old or []))]
        elif isinstance(value, dict):
            merged[name] = merge(old if isinstance(old, dict) else {}, value, where)
        else:
            merged[name] = value
    return merged


def _merge_list(name: str, base: list[Any], over: list[Any], path: str) -> list[Any]:
    key = _KEYS[name]
    merged = {item[key]: item for item in base}
    for item in over:
        if not isinstance(item, dict) or not isinstance(item.get(key), str | int):
            raise RejectedError(f"{path}: every item must be an object with {key}")
        old = merged.get(item[key], {})
        merged[item[key]] = merge({} if name in _REPLACED else old, item, f"{path}[{item[key]}]")
    return list(merged.values())
