"""Every refused manifest of the table, held against the API server that a user talks to."""

import json
from typing import Any

import pytest

from tests.e2e.kube import CommandError, Namespace, wait_until
from tests.manifests.refused import (
    CHANGEABLE,
    CHANGED,
    OWN_CONTAINER,
    OWN_RECIPE,
    OWN_UNKNOWN_KEYS,
    REFUSED,
    UNCHECKED_KEYS,
    UNKNOWN_KEYS,
    Refused,
    manifest,
    run,
    with_field,
)
from trainyard_api.recipes import recipe_keys, unknown_key


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


def test_the_api_server_refuses_keys_that_a_recipe_does_not_know(space: Namespace) -> None:
    wrong = []
    for case, wanted, lines in UNKNOWN_KEYS:
        try:
            create(space, wanted)
        except CommandError as error:
            wrong += [f"{case}: {line} not in: {error}" for line in lines if line not in str(error)]
        else:
            wrong.append(f"{case}: was accepted")
    for case, wanted in UNCHECKED_KEYS:
        try:
            create(space, wanted)
        except CommandError as error:
            wrong.append(f"{case}: {error}")
    assert not wrong, "\n".join(wrong)


def test_keys_of_a_recipe_that_the_chart_was_given_are_checked_as_well(space: Namespace) -> None:
    for wanted, line in OWN_UNKNOWN_KEYS:
        with pytest.raises(CommandError) as refusal:
            create(space, wanted)
        assert line in str(refusal.value)
    config: dict[str, Any] = dict.fromkeys(OWN_RECIPE["sine-fit"][""], 1)
    create(space, run("sine-fit", config | {"package": {"depth": 1}}, image="mine:1"))


def test_an_unknown_key_unlike_any_other_lists_the_known_ones(space: Namespace) -> None:
    """As the CLI does, to the letter; and so many that the line would be too long are refused."""
    known = recipe_keys()["gpt"][""]
    with pytest.raises(CommandError) as refusal:
        create(space, run("gpt", {"zzz": 1}))
    assert unknown_key(("zzz",), known) in str(refusal.value)
    with pytest.raises(CommandError, match="config has keys that the recipe does not know"):
        create(space, run("gpt", {f"zz{number}": number for number in range(60)}))


def test_every_setting_of_every_recipe_is_accepted(space: Namespace) -> None:
    for recipe, groups in recipe_keys().items():
        config: dict[str, Any] = dict.fromkeys(groups[""], 1)
        for group in filter(None, groups):
            config[group] = dict.fromkeys(groups[group], 1)
        create(space, run(recipe, config))


def test_what_is_stored_can_be_edited_and_deleted(space: Namespace) -> None:
    """An unknown key of a run with an image of its own, which is then taken away."""
    own = {"spec": {"containers": [OWN_CONTAINER]}}
    space.apply(run("char-gpt", {"mine": 1, "max_steps": 5}, podTemplate=own))

    def patch(**spec: Any) -> None:
        text = json.dumps({"spec": spec})
        space.kubectl("patch", "trun", "good", "--type", "merge", "--patch", text)

    patch(podTemplate=None)
    patch(maxRestarts=9)
    space.kubectl("annotate", "trun", "good", "trainyard.dev/retry=1")
    space.kubectl("scale", "trainingrun", "good", "--replicas", "2")
    stored = space.get("trun", "good")
    assert stored
    generation = stored["metadata"]["generation"]
    assert generation > 3
    # The operator's status of it isn't refused either.
    space.wait_status("good", "seen", lambda s: s.get("observedGeneration") == generation)
    with pytest.raises(CommandError, match=r"config\.mine: unknown key"):
        patch(config={"max_steps": 6})
    patch(config={"max_steps": 6, "mine": None})
    space.kubectl("delete", "trun", "good")


def test_the_policy_is_checked_without_a_warning(space: Namespace) -> None:
    def status() -> dict[str, Any]:
        policy = space.get("validatingadmissionpolicy", "trainyard-operator-keys")
        assert policy
        return dict(policy.get("status", {}))

    # Without warnings it is there, and empty.
    wait_until("the policy is checked", lambda: "typeChecking" in status())
    assert not status()["typeChecking"].get("expressionWarnings")


def create(space: Namespace, wanted: dict[str, Any]) -> None:
    """As far as admission, strictly."""
    space.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(wanted))
