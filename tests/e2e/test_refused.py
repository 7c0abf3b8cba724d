"""Every refused manifest of the table, held against the API server that a user talks to."""

import json
from typing import Any

import pytest

from tests.e2e.kube import CommandError, Namespace
from tests.manifests.refused import CHANGED, REFUSED, Refused, manifest


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
    def run(value: Any, field: str, name: str) -> str:
        spec: dict[str, Any] = {"recipe": "char-gpt", "suspend": True}
        if value is not None:
            spec[field] = value
        return json.dumps(manifest(Refused("", (), spec, name)))

    for index, (case, field, before, after) in enumerate(CHANGED):
        name = f"run-{index}"
        space.kubectl("create", "-f", "-", stdin=run(before, field, name))
        # A status written between the two requests that `kubectl replace` makes is a conflict.
        space.wait_phase(name, "Suspended")
        with pytest.raises(CommandError, match=f"{field}.* immutable"):
            space.kubectl("replace", "-f", "-", stdin=run(after, field, name))
        assert case


def test_good_changes_are_accepted(space: Namespace) -> None:
    space.kubectl(
        "create", "-f", "-", stdin=json.dumps(manifest(Refused("", (), {"suspend": True})))
    )
    patch = {"spec": {"maxRestarts": 9, "activeDeadlineSeconds": 100, "numNodes": 2}}
    space.kubectl("patch", "trun", "good", "--type", "merge", "--patch", json.dumps(patch))
    space.kubectl("scale", "trainingrun", "good", "--replicas", "3")
    found = space.get("trun", "good")
    assert found
    assert (found["spec"]["numNodes"], found["spec"]["maxRestarts"]) == (3, 9)
