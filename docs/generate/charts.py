"""The pages of both charts' values: names, types, defaults and what the comments say.

A value's description is the comment above it and the one behind it in values.yaml, else the
description in values.schema.json. A comment above a block belongs to the block.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HEADS = {
    "operator": """\
# Values of the operator chart

`charts/operator` installs the CRDs, the operator and, if asked, monitoring and the dashboard;
[Operations](../operate/operations.md) explains installing and upgrading.
""",
    "serving": """\
# Values of the serving chart

`charts/serving` serves one model; its [README](../../charts/serving/README.md) explains which
values belong together, and [the guide](../guides/serving.md) the servers.
""",
}
TAIL = """\
Pass them with `--set name=value` or in a file with `--values FILE`. A name or a type that the chart
doesn't know is refused. This page is generated from `values.yaml` and `values.schema.json` by
`make reference`.

| value | type | default | description |
|---|---|---|---|
"""
# Kubernetes' own: every chart has them, with the same meaning.
USUAL = {
    "imagePullSecrets": "Secrets for a registry that asks who is pulling.",
    "image.repository": "Image name without tag.",
    "image.pullPolicy": "When the node pulls the image.",
    "nameOverride": "Replaces the chart's name in the names of objects.",
    "fullnameOverride": "Replaces the whole name of objects, the release's included.",
    "podAnnotations": "Annotations added to the pods.",
    "podLabels": "Labels added to the pods.",
    "nodeSelector": "Labels that a node must have.",
    "tolerations": "Taints of nodes that the pods tolerate.",
    "affinity": "Affinity of the pods, as in a pod's spec.",
    "priorityClassName": "PriorityClass of the pods.",
    "resources": "Requests and limits of the container, as in a pod's spec.",
    "command": "Command of the container.",
    "args": "Arguments of the container.",
    "env": "Environment variables, as in a container.",
    "annotations": "Annotations of the object.",
    "labels": "Labels of the object.",
    "image.tag": "Image tag.",
    "limits": "Limits of the container, as in a pod's spec.",
    "requests": "Requests of the container, as in a pod's spec.",
    "maxSurge": "Pods above the number of replicas during an update.",
    "maxUnavailable": "Pods below the number of replicas during an update.",
    "pullPolicy": "When the node pulls the image.",
    "repository": "Image name without tag.",
    "secretKey": "Name of the key in the Secret.",
    "enabled": "Whether the objects are made.",
    "interval": "Time between two scrapes.",
    "create": "Whether the objects are made; otherwise bring your own.",
    "name": "Name of the object.",
    "type": "Type, as in the Kubernetes object.",
    "port": "Port of the Service.",
    "className": "IngressClass.",
}


@dataclass(frozen=True)
class Value:
    """A line of the table."""

    name: str
    default: Any
    comment: str
    schema: dict[str, Any]


def reference(chart: str) -> str:
    """docs/reference/chart-CHART.md."""
    return HEADS[chart] + "\n" + TAIL + "".join(map(_row, values(chart)))


def values(chart: str) -> list[Value]:
    """Every value of the chart that a user can set, in the order of values.yaml."""
    folder = ROOT / "charts" / chart
    text = (folder / "values.yaml").read_text()
    schema = json.loads((folder / "values.schema.json").read_text())
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    return list(_walk(node, "", schema, schema, text.splitlines(), ""))


def _walk(
    node: yaml.MappingNode,
    prefix: str,
    schema: dict[str, Any],
    root: dict[str, Any],
    lines: list[str],
    inherited: str,
) -> Iterator[Value]:
    for key, child in node.value:
        name = f"{prefix}{key.value}"
        below = _resolved(schema.get("properties", {}).get(key.value, {}), root)
        comment = _comment(lines, key.start_mark.line, inherited)
        # A block of named values is a heading for them; a free-form one is a value itself.
        if isinstance(child, yaml.MappingNode) and child.value and below.get("properties"):
            if comment:
                yield Value(name, None, comment, {"type": "object"})
            yield from _walk(child, f"{name}.", below, root, lines, "")
        else:
            loaded = yaml.safe_load(yaml.serialize(child))
            yield Value(name, loaded, comment, below)


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if not reference:
        return schema
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _comment(lines: list[str], line: int, inherited: str) -> str:
    above: list[str] = []
    for text in reversed(lines[:line]):
        if not text.strip().startswith("#"):
            break
        above.insert(0, text.strip().removeprefix("#").strip())
    behind = re.search(r"\s#\s(.+)$", lines[line])
    parts = [" ".join(above), behind[1] if behind else "", inherited]
    return " ".join(_sentence(part) for part in parts if part)


def _row(value: Value) -> str:
    last = value.name.rpartition(".")[2]
    what = value.comment or _sentence(value.schema.get("description", ""))
    what = what or USUAL.get(value.name, USUAL.get(last, ""))
    default = "" if value.default is None else f"`{_shown(value.default)}`"
    cells = [f"`{value.name}`", _type(value), default, what]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(value: Value) -> str:
    schema = value.schema
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"] if each not in ("", None))
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind] if kind else []
    names = [each for each in kinds if each != "null"]
    text = " or ".join(names)
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "at least"), ("maximum", "at most"))
        if key in schema
    ]
    return ", ".join([text, *bounds]) if text else "any"


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | str | bool) else str(value)


def _sentence(text: str) -> str:
    text = text.strip()
    if not text or text.startswith("- "):  # an example
        return ""
    if not text.startswith("none,"):
        text = text[0].upper() + text[1:]
    return text if text[-1] in ".:)" else f"{text}."
