"""Unknown keys of built-in recipes: what is said about them, and by whom."""

import pytest

from trainyard_api.recipes import recipe_keys, unknown_key
from trainyard_trainer.registry import find_recipe


def test_the_line_about_a_key_names_what_is_most_like_it_or_all() -> None:
    known = list(recipe_keys()["char-gpt"][""])
    lines = {
        "lerning_rate": "; did you mean learning_rate?",
        "learningRate": "; did you mean learning_rate?",
        "n_layers": "; did you mean n_layer?",
        "layers": "; did you mean n_layer?",
        "batchsize": "; did you mean batch_size?",
        "epochs": "; did you mean num_epochs?",
        "weight_decay_rate": "; did you mean weight_decay?",
        "seed": f" (known: {', '.join(known)})",
        "x": f" (known: {', '.join(known)})",
        "": f" (known: {', '.join(known)})",
    }
    found = {key: unknown_key((key,), known) for key in lines}
    assert found == {key: f"config.{key}: unknown key{line}" for key, line in lines.items()}


@pytest.mark.parametrize("recipe", recipe_keys())
def test_no_key_that_a_recipe_has_is_unknown(recipe: str) -> None:
    keys = recipe_keys()[recipe]
    fields = find_recipe(recipe).Config.model_fields
    assert list(keys[""]) == list(fields)
    assert {group for group in keys if group} <= set(fields)
