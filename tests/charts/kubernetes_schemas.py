"""Kubernetes' own schemas, as the package kubernetes-validate brings them: no cluster is asked."""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

# The oldest version that charts/serving takes, and the one that `make cluster` builds.
VERSIONS = ("1.30.0", "1.36.0")
# Of the Prometheus operator and of KEDA: their schemas are in no package.
CUSTOM = frozenset({"PodMonitor", "PrometheusRule", "ServiceMonitor", "ScaledObject"})


def violations(manifest: dict[str, Any], version: str) -> list[str]:
    """What the API server would refuse in it, unknown fields included; empty when nothing."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", manifest["apiVersion"])
    validator = _validator(f"{manifest['kind'].lower()}-{group}.json", version)
    return [
        f"{manifest['kind']} {'.'.join(map(str, error.path))}: {error.message}"
        for error in validator.iter_errors(manifest)
    ]


@cache
def _validator(file: str, version: str) -> Draft202012Validator:
    schema = _read(file, version)
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    definitions: Resource[Any] = Resource.from_contents(_read("_definitions.json", version))
    return definitions @ Registry()


def _read(file: str, version: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    return json.loads((folder / file).read_text())
