"""char-gpt that exports another model than it trained, for test_export_check.py: preloaded into
rank_server.py, no effect without EXPORT_FAULT."""

import os
from pathlib import Path

from torch import Tensor

from trainyard_trainer.recipes.char_gpt import CharGPT

_FROM_STEP = 6
_export = CharGPT.export


def _export_another(self: CharGPT, weights: dict[str, Tensor], directory: Path) -> None:
    fault, step = os.environ.get("EXPORT_FAULT"), int(directory.name.split("step-")[1][:8])
    if step >= _FROM_STEP and fault == "token":  # it has the embedding of another one
        weights = weights | {"wte.weight": weights["wte.weight"].clone()}
        weights["wte.weight"][5] = weights["wte.weight"][6]
    elif step >= _FROM_STEP and fault == "nan":
        weights = weights | {"ln_f.bias": weights["ln_f.bias"] + float("nan")}
    elif step >= _FROM_STEP and fault == "tokens":  # each has the embedding of the one before
        weights = weights | {"wte.weight": weights["wte.weight"].roll(1, 0)}
    _export(self, weights, directory)


setattr(CharGPT, "export", _export_another)  # noqa: B010, for mypy
