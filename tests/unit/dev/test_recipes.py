"""The keys of the built-in recipes are committed, and the policy has the constants of the code."""

from dev import recipes
from trainyard_api.recipes import ALIKE, MAX_PAIRS, recipe_keys
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_api.spec import CONTAINER
from trainyard_api.study import STUDY_PLURAL

POLICY = recipes.REPO / "charts" / "operator" / "templates" / "_recipe-keys.tpl"


def test_the_committed_files_are_current() -> None:
    keys = recipes.recipe_keys()
    for file in recipes.FILES:
        assert file.read_text() == recipes.keys_json(keys), f"{file} is stale: make crd"
    assert recipe_keys() == keys


def test_the_policy_computes_with_the_constants_of_the_code() -> None:
    text = POLICY.read_text()
    for part in (
        f"untilStep 0 {MAX_PAIRS} 1",
        f"scores.max() < {ALIKE}\n",
        f"apiGroups: [{GROUP}]",
        f"apiVersions: [{VERSION}]",
        f"resources: [{PLURAL}, {STUDY_PLURAL}]",
        f"orValue('') == '{CONTAINER}'",
    ):
        assert part in text, part
