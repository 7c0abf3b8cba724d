"""Every refused manifest of the table, held against the API server that a user talks to."""

import json
from typing import Any

import pytest

from tests.e2e.kube import CommandError, Namespace
from tests.manifests.refused import (
    CHANGEABLE,
    CHANGED,
    REFUSED,
    Refused,
    manifest,
    with_field,
)


def test_the_api_server_refuses_bad_manifests(space: Namespace) -> None:
    wrong = []
    for case in REFUSED:
        try:
            space.kubectl("create", "-f", "-", stdin=json.dumps(manifest(case)))
        except CommandError as error:
            text = str(error)
            missing = [word for word in case.words if word.lower() not in text.lower()]
            if missing:
                wrong.append(f"{case.case}: {missing} not in: {text}")
        else:
            wrong.append(f"{case.case}: was accepted")
    assert not wrong, "\n".join(wrong)


def test_the_api_server_refuses_changes_of_immutable_fields(space: Namespace) -> None:
    def text(value: Any, field: str, name: str) -> str:
        spec = with_field(field, value) | {"suspend": True}
        return json.dumps(manifest(Refused("", (), spec, name)))

    for index, (case, field, before, after) in enumerate(CHANGED):
        name = f"run-{index}"
        space.kubectl("create", "-f", "-", stdin=text(before, field, name))
        # A status written between the two requests that `kubectl replace` makes is a conflict.
        space.wait_phase(name, "Suspended")
        with pytest.raises(CommandError) as refusal:
            space.kubectl("replace", "-f", "-", stdin=text(after, field, name))
        assert f"spec.{field} is immutable" in str(refusal.value), case


def test_good_changes_are_accepted(space: Namespace) -> None:
    for index, (_, before, after) in enumerate(CHANGEABLE):
        name = f"run-{index}"
        suspended = {"suspend": True}
        space.apply(manifest(Refused("", (), suspended | before, name)))
        space.apply(manifest(Refused("", (), suspended | after, name)))
        found = space.get("trun", name)
        assert found
        assert found["spec"].get("storage") == after.get("storage")
    space.kubectl(
        "create", "-f", "-", stdin=json.dumps(manifest(Refused("", (), {"suspend": True})))
    )
    patch = {"spec": {"maxRestarts": 9, "activeDeadlineSeconds": 100, "numNodes": 2}}
    space.kubectl("patch", "trun", "good", "--type", "merge", "--patch", json.dumps(patch))
    space.kubectl("scale", "trainingrun", "good", "--replicas", "3")
    found = space.get("trun", "good")
    assert found
    assert (found["spec"]["numNodes"], found["spec"]["maxRestarts"]) == (3, 9)
