"""charts/operator: the admission policy about unknown keys of config."""

import yaml

from .conftest import CHARTS, Render

POLICY = "ValidatingAdmissionPolicy"
BINDING = "ValidatingAdmissionPolicyBinding"


def test_the_policy_is_the_generated_one_and_bound_everywhere(render: Render) -> None:
    rendered = render("operator")
    policy, binding = rendered.one(POLICY), rendered.one(BINDING)
    file = CHARTS / "operator" / "policies" / "recipe-keys.yaml"
    assert policy["spec"] == yaml.safe_load(file.read_text())
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }


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
