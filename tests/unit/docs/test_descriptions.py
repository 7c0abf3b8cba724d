"""`kubectl explain` says something about every field."""

from collections.abc import Iterator
from typing import Any

import pytest

from dev import crd

# Kubernetes describes it, and refuses a schema that says more of it than its type.
NOT_OURS = {".metadata"}


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every named field below `node`, with its path."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from fields(node[key], f"{path}[]")


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.kind)
def test_every_field_is_described_in_sentences(kind: crd.Kind) -> None:
    schema = crd.schema(kind.model)
    found = {path: each.get("description", "") for path, each in fields(schema)}
    assert len(found) > 60
    bad = {
        path: text
        for path, text in found.items()
        if path not in NOT_OURS and not (text.endswith(".") and text[:1] == text[:1].upper())
    }
    assert bad == {}
    assert schema["description"].endswith(".")


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.kind)
def test_explain_shows_defaults(kind: crd.Kind) -> None:
    """It prints descriptions only, so a plain default stands there, too."""
    with_default = {
        path: each
        for path, each in fields(crd.schema(kind.model))
        if isinstance(each.get("default"), int | float | str)
    }
    assert len(with_default) > 4
    assert [
        path for path, each in with_default.items() if "Default" not in each["description"]
    ] == []
