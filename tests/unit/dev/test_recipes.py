"""What is generated from the recipes is committed, and the admission policy can block nobody."""

from typing import Any

import pytest
import yaml

from dev import recipes
from trainyard_api.recipes import recipe_keys


@pytest.fixture(scope="module")
def policy() -> Any:
    """The spec of the admission policy."""
    return yaml.safe_load(recipes.POLICY_FILE.read_text())


def test_the_committed_files_are_current() -> None:
    keys = recipes.recipe_keys()
    assert recipes.KEYS_FILE.read_text() == recipes.keys_json(keys), "stale: make crd"
    assert recipes.POLICY_FILE.read_text() == recipes.policy(keys), "stale: make crd"
    assert recipe_keys() == keys


def test_it_looks_at_new_configs_alone_and_its_own_errors_block_nobody(policy: Any) -> None:
    assert policy["failurePolicy"] == "Ignore"
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert rule["operations"] == ["CREATE", "UPDATE"]
    assert rule["resources"] == ["trainingruns", "scalingstudies"]  # and no subresource
    new, ours = (each["expression"] for each in policy["matchConditions"])
    assert new.startswith("oldObject == null || object.spec.?config != oldObject.spec.?config")
    assert "!has(run.image)" in ours


def test_every_group_of_settings_is_looked_at(policy: Any) -> None:
    groups = {group for keys in recipe_keys().values() for group in keys}
    assert groups == {"", "lora", "slice", "from_scratch"}
    (validation,) = policy["validations"]
    assert validation["message"], "said where the other one can't be computed"
    for name, text in (("unknown", "expression"), ("lines", "messageExpression")):
        assert "\n" not in validation[text]
        for group in groups:
            variable = f"{name}_{group}" if group else name
            assert f"variables.{variable}" in validation[text]
            assert variable in {each["name"] for each in policy["variables"]}
