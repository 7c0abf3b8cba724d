"""Low-rank adaptation (Hu et al., 2021) through peft: small matrices are trained instead of the
model's own weights."""

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from trainyard_trainer.recipes import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_PREFIX = "base_model.model."  # what peft puts before the model's own names
_BASE = ".base_layer."  # in the names of the weights that it adapts


class LoraSettings(BaseModel):
    """The `lora` setting. alpha and dropout are what peft calls lora_alpha and lora_dropout."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    r: int = Field(default=8, ge=1)
    """Rank of the added matrices."""

    alpha: int = Field(default=16, ge=1)
    """Their output is scaled by alpha / r."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of their inputs in training."""

    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None
    """Names of the layers to adapt, such as [q_proj, v_proj], or all-linear. Default: those
    of peft for the architecture."""


def add_lora(model: "PreTrainedModel", settings: LoraSettings) -> None:
    """Add the matrices in place and freeze everything else. Raises ConfigError."""
    from peft import inject_adapter_in_model

    linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if _is_linear(m)})
    known = f"{type(model).__name__} has {', '.join(linear)}"
    if isinstance(settings.target_modules, tuple):
        names = {part for name, _ in model.named_modules() for part in (name, _last(name))}
        if absent := [name for name in settings.target_modules if name not in names]:
            raise ConfigError(f"config.lora.target_modules: there is no {absent[0]}; {known}")
    try:
        with _without_warnings():
            inject_adapter_in_model(_peft_config(settings, ""), model)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"config.lora.target_modules: {reason} ({known})") from None


def merged(
    model: "PreTrainedModel",
    settings: LoraSettings,
    weights: dict[str, Tensor],
    base: str,
    adapter_directory: Path,
) -> "PreTrainedModel":
    """`model` (empty) with `weights`, the added matrices merged into copies of its own.

    They are also written to `adapter_directory`, as an adapter of the model named `base`.
    """
    from peft import get_peft_model

    # Merging adds in place, and on the CPU these weights are those of the model in training. A
    # weight that another layer shares must not change for that layer either: see `untie`.
    prefixed = {
        f"{_PREFIX}{name}": tensor.clone() if _BASE in name else tensor
        for name, tensor in weights.items()
    }
    with _without_warnings():
        wrapped: Any = get_peft_model(model, _peft_config(settings, base))
        wrapped.load_state_dict(prefixed, assign=True)
        # Without the embeddings, which peft would add if they are adapted: they are the base's.
        wrapped.save_pretrained(adapter_directory, save_embedding_layers=False)
        (adapter_directory / "README.md").unlink(missing_ok=True)  # an empty model card template
        result: PreTrainedModel = wrapped.merge_and_unload()
    return result


def untie(config: "PreTrainedConfig", weights: dict[str, Tensor]) -> "PreTrainedConfig":
    """The config.json of the merged model: without tied embeddings if they have become different.

    An adapter of the token embedding leaves the output layer as it was, and the other way round,
    although both share one weight: merged, they are two.
    """
    layers = Counter(tensor.data_ptr() for tensor in weights.values())
    config = copy.deepcopy(config)
    if any(_BASE in name and layers[each.data_ptr()] > 1 for name, each in weights.items()):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
    return config


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Of names that transformers has deprecated and peft uses, and of tied embeddings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", r"Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        yield


def _peft_config(settings: LoraSettings, base: str) -> Any:
    from peft import LoraConfig

    modules = settings.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(modules) if isinstance(modules, tuple) else modules,
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's


def _last(name: str) -> str:
    return name.rpartition(".")[2]
