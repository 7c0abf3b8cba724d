"""charts/operator: the admission policy about unknown keys of config."""

import json
from typing import Any

from trainyard_api.recipes import recipe_keys

from .conftest import Refusal, Render

POLICY = "ValidatingAdmissionPolicy"
BINDING = "ValidatingAdmissionPolicyBinding"
MINE = {"sine-fit": {"": ["max_steps", "package"], "package": ["depth"]}}


def own(recipes: Any) -> str:
    return f"admissionPolicy.recipes:={json.dumps(recipes)}"


def expressions(policy: Any) -> dict[str, str]:
    """The policy's variables and conditions, each on one line."""
    spec = policy["spec"]
    each = [*spec["matchConditions"], *spec["variables"]]
    return {item["name"]: " ".join(item["expression"].split()) for item in each}


def test_the_policy_knows_every_key_and_is_bound_everywhere(render: Render) -> None:
    rendered = render("operator")
    policy, binding = rendered.one(POLICY), rendered.one(BINDING)
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }
    known = expressions(policy)["known"]
    for recipe, groups in recipe_keys().items():
        lists = [f"'{group}': {list(keys)!r}," for group, keys in sorted(groups.items())]
        assert f"'{recipe}': {{ {' '.join(lists)} }}," in known


def test_it_looks_at_new_configs_alone_and_its_own_errors_block_nobody(render: Render) -> None:
    policy = render("operator").one(POLICY)
    assert policy["spec"]["failurePolicy"] == "Ignore"
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert rule["operations"] == ["CREATE", "UPDATE"]
    assert rule["resources"] == ["trainingruns", "scalingstudies"]  # and no subresource
    conditions = expressions(policy)
    start = "oldObject == null || object.spec.?config != oldObject.spec.?config"
    assert conditions["the-config-is-new"].startswith(start)
    assert ".all(run, !has(run.image)" in conditions["the-image-is-the-operators"]


def test_every_group_of_settings_is_looked_at(render: Render) -> None:
    policy = render("operator", own(MINE)).one(POLICY)
    groups = {group for keys in recipe_keys().values() for group in keys} | {"package"}
    assert groups == {"", "lora", "slice", "from_scratch", "profile", "package"}
    (validation,) = policy["spec"]["validations"]
    assert validation["message"], "said where the other one can't be computed"
    for name, text in (("unknown", "expression"), ("lines", "messageExpression")):
        assert "\n" not in validation[text]
        for group in groups:
            variable = f"{name}_{group}" if group else name
            assert f"variables.{variable}" in validation[text]
            assert variable in expressions(policy)


def test_recipes_of_the_values_are_checked_in_images_of_their_own(render: Render) -> None:
    found = expressions(render("operator", own(MINE)).one(POLICY))
    assert "'sine-fit': { '': ['max_steps', 'package'], 'package': ['depth'], }," in found["known"]
    condition = found["the-image-is-the-operators"]
    assert ".all(run, run.?recipe.orValue('') in ['sine-fit'] || !has(run.image)" in condition


def test_keys_of_a_built_in_recipe_and_what_is_no_key_are_refused(refusal: Refusal) -> None:
    line = "admissionPolicy.recipes.gpt: a built-in recipe has this name; remove it"
    assert line in refusal("operator", own({"gpt": {"": ["a"]}}))
    assert "does not match pattern" in refusal("operator", own({"mine": {"": ["a'b"]}}))
    assert "does not match pattern" in refusal("operator", own({"mine": {"": ["a"], "b-c": ["d"]}}))


def test_it_holds_in_the_namespace_that_the_operator_manages(render: Render) -> None:
    rendered = render("operator", "watchNamespace=team")
    policy, binding = rendered.one(POLICY), rendered.one(BINDING)
    assert binding["spec"]["matchResources"] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}
    }
    # Another release of this name may manage another namespace, and policies have none.
    assert policy["metadata"]["name"] == "trainyard-operator-team-keys"


def test_a_trainer_with_other_recipes_goes_without(render: Render) -> None:
    rendered = render("operator", "admissionPolicy.enabled=false")
    assert not rendered.all(POLICY)
    assert not rendered.all(BINDING)
