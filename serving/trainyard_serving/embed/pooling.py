"""What a model's files say of how its hidden states become an embedding.

They are those of Sentence Transformers. What they ask for and is not known here is refused by name:
without it the embeddings would be others than those the model was trained to give.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODULES = "modules.json"
POOLING = "1_Pooling"
# Of the Transformer module: the first of these that exists, as its older classes were named.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
DEFAULTS = "config_sentence_transformers.json"
LIBRARY = "sentence_transformers."

Mode = Literal["mean", "cls", "max", "lasttoken"]
# In config.json of the pooling module: either one of these flags is true, or there is pooling_mode.
FLAGS: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """How hidden states become an embedding.

    Attributes:
        mode: over the tokens of a text; None when the files do not say it.
        normalize: whether embeddings have length 1.
        max_tokens: the longest text; None when only the model limits it.
        lowercase: whether texts are in lower case before they are tokenised.
    """

    mode: Mode | None = None
    normalize: bool = False
    max_tokens: int | None = None
    lowercase: bool = False


def read_pooling(directory: Path) -> Pooling:
    """Read a model's files. Raises ValueError for what is not supported, or cannot be read."""
    modules = _read(directory / MODULES, list)
    folder = POOLING
    names = []
    for module in modules or []:
        if not isinstance(module, dict):
            raise ValueError(f"{MODULES}: not a list of modules")
        kind = str(module.get("type", ""))
        # Else it is code of the model's own, whatever its name.
        name = kind.rpartition(".")[2] if kind.startswith(LIBRARY) else f"{kind} (not {LIBRARY}*)"
        path = str(module.get("path", ""))
        if name == "Pooling":
            folder = path
        elif name == "Transformer" and path:
            raise ValueError(f"{MODULES}: the Transformer must be in the folder itself, not {path}")
        names.append(name)
    if names and names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{MODULES}: the modules {', '.join(names)} are not supported, only Transformer,"
            " Pooling and Normalize, in this order"
        )
    _refuse_defaults(directory)
    transformer = _transformer(directory)
    longest = transformer.get("max_seq_length")
    return Pooling(
        _mode(directory, folder, required=bool(names)),
        "Normalize" in names,
        longest if isinstance(longest, int) and longest > 0 else None,
        transformer.get("do_lower_case") is True,
    )


def _mode(directory: Path, folder: str, required: bool) -> Mode | None:
    file = directory / folder / "config.json"
    if not file.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{MODULES}: {folder} is outside of the model's folder")
    config = _read(file, dict)
    where = f"{folder}/config.json"
    if config is None:
        if required:
            raise ValueError(f"{where} is missing")
        return None
    if config.get("include_prompt", True) is not True:
        # Clients write prompts into their texts, so which tokens are the prompt's is not known.
        raise ValueError(
            f"{where}: include_prompt: false is not supported: the tokens of a prompt are pooled,"
            " too, so serve a model that was trained with include_prompt: true"
        )
    given = config.get("pooling_mode")
    if given is None:
        given = [
            FLAGS.get(name, name)
            for name, value in config.items()
            if name.startswith("pooling_mode_") and value is True
        ]
    modes = [given] if isinstance(given, str) else given
    known = list(FLAGS.values())
    for mode in known:
        if modes == [mode]:
            return mode
    shown = " and ".join(map(str, modes)) if isinstance(modes, list) and modes else "no mode"
    raise ValueError(f"{where}: {shown} is not supported, only one of {', '.join(known)}")


def _transformer(directory: Path) -> dict[str, Any]:
    """The settings of the Transformer module. Raises ValueError for what is not supported."""
    for name in TRANSFORMER_CONFIGS:
        config: dict[str, Any] | None = _read(directory / name, dict)
        if config is None:
            continue
        for key, value in config.items():
            if value and not _supported(key, value):
                raise ValueError(
                    f"{name}: {key} is not supported: remove it if the model's embeddings are the"
                    " same without it"
                )
        return config
    return {}


def _supported(key: str, value: Any) -> bool:
    """Whether a setting of the Transformer module is one that holds, or that changes nothing."""
    match key:
        case "max_seq_length" | "do_lower_case" | "unpad_inputs":  # the last is a matter of speed
            return True
        case "transformer_task":
            return bool(value == "feature-extraction")
        case "modality_config":
            text = value.get("text") if isinstance(value, dict) else None
            return bool(text == {"method": "forward", "method_output_name": "last_hidden_state"})
        case "module_output_name":
            return bool(value == "token_embeddings")
    return False


def _refuse_defaults(directory: Path) -> None:
    config = _read(directory / DEFAULTS, dict) or {}
    if (name := config.get("default_prompt_name")) is not None:
        raise ValueError(
            f"{DEFAULTS}: default_prompt_name ({name}) is not supported: set it to null, and send"
            " texts with their prompt"
        )
    if (size := config.get("truncate_dim")) is not None:
        raise ValueError(
            f"{DEFAULTS}: truncate_dim ({size}) is not supported: set it to null, and"
            f" matryoshka_dimensions to [{size}] in config.json, and send dimensions: {size}"
        )


def _read(file: Path, kind: type) -> Any:
    """The JSON of `kind` in a file; None if there is no file."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file.name}: not valid JSON: {error}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{file.name}: not a JSON {'list' if kind is list else 'object'}")
    return content
