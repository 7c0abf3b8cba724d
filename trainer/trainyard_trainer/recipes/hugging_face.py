"""Models and tokenizers in Hugging Face format: loaded from the Hub or a directory, and uploaded.

Code that comes with a model is never run, and pickled weights are never opened.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainyard_api.checkpoint import MANIFEST
from trainyard_api.golden import EVALUATION, GOLDEN
from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_tokenizer(key: str, name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model. Raises ConfigError, naming the setting `key`, with the reason."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _load(key, name, AutoTokenizer)
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        # A config.json alone is enough for transformers to make a tokenizer without a vocabulary.
        raise ConfigError(
            f"config.{key}: {name} has no tokenizer (tokenizer.json, or vocab.json and"
            " merges.txt); set config.tokenizer to the one the model was trained with"
        )
    return tokenizer


def load_config(key: str, name: str) -> "PreTrainedConfig":
    """The config.json of a model. Raises ConfigError."""
    from transformers import AutoConfig

    config: PreTrainedConfig = _load(key, name, AutoConfig)
    return config


def check_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", max_length: int
) -> None:
    """Raise ConfigError unless the model has every token and `max_length` positions."""
    shape = config.get_text_config()
    embeddings = shape.vocab_size
    if len(tokenizer) > embeddings:
        raise ConfigError(
            f"config.tokenizer: {tokenizer.name_or_path} has {len(tokenizer):,} tokens, but the"
            f" model {config.name_or_path} has embeddings for {embeddings:,}: use the model's"
            " own tokenizer"
        )
    check_context(config, max_length)


def check_context(config: "PreTrainedConfig", max_length: int) -> None:
    """Raise ConfigError unless the model has `max_length` positions."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ConfigError(
            f"config.max_length: {max_length} tokens, but {config.name_or_path} was made for"
            f" {context}; lower it"
        )


def load_pretrained(
    key: str, name: str, auto: Any, fresh: tuple[str, ...] = (), **options: Any
) -> "PreTrainedModel":
    """A pretrained model in fp32; `auto` is the transformers class for its task.

    `fresh`: name prefixes of weights that may be initialised randomly, such as those of a new head.
    Raises ConfigError if other weights are missing, which transformers would initialise too.
    """
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in WEIGHTS):
        raise ConfigError(
            f"config.{key}: {name} has no weights ({WEIGHTS[0]}); config.from_scratch starts from"
            " random ones"
        )
    model: PreTrainedModel
    options |= {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True}
    model, info = _load(key, name, auto, output_loading_info=True, **options)
    for weight, actual, expected in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"config.{key}: {weight} of {name} has the shape {tuple(actual)}, not {tuple(expected)}"
        )
    if missing := sorted(each for each in info["missing_keys"] if not each.startswith(fresh)):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ConfigError(
            f"config.{key}: the weights of {name} lack {missing[0]}{more}: it is not a pretrained"
            f" {type(model).__name__}"
        )
    return model


def load_exported(directory: Path, auto: Any) -> nn.Module:
    """A recipe's `load_exported`, for a model of transformers."""
    model: nn.Module = load_pretrained("model", str(directory), auto)
    return model.eval()


def random_model(config: "PreTrainedConfig", auto: Any) -> "PreTrainedModel":
    """A freshly initialised model of that shape, in fp32."""
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    return model


def empty_model(config: "PreTrainedConfig", auto: Any) -> "PreTrainedModel":
    """The model on the meta device, without memory for its weights; see `assign_weights`."""
    with torch.device("meta"):
        return random_model(config, auto)


def assign_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give an empty model its weights, without copying them."""
    model.load_state_dict(weights, assign=True)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer's layers: the module list with the most parameters in it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


PROBE_TOKENS = 8  # of each text in `check_packing`
# Largest differences of logits, relative to their standard deviation, that can be rounding.
SAME_SHAPE, OTHER_SHAPE = 1e-4, 1e-2


@torch.no_grad()
def check_packing(model: "PreTrainedModel", max_length: int) -> None:
    """Raise ConfigError unless the model keeps the texts in a row of `max_length` tokens apart.

    Models of transformers are told by position ids that begin again. Some do not look at them, or
    not in every layer, so it is tried: what comes before a text in its row may not change its
    logits, and they are those of the text alone. The model is on the CPU; it is put into evaluation
    mode.
    """
    model.eval()  # type: ignore[no-untyped-call]
    name = type(model).__name__
    size = max(1, min(PROBE_TOKENS, (max_length - 1) // 2))
    vocabulary = model.config.get_text_config().vocab_size
    before, other, text = torch.linspace(0, vocabulary - 1, 3 * size).long().view(3, size)
    positions = torch.arange(size).repeat(1, 2)
    try:
        packed, again = (
            model(torch.cat([first, text])[None], position_ids=positions, use_cache=False).logits[
                0, size:
            ]
            for first in (before, other)
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"config.packing: {name} takes no packed rows ({reason}); set it to false"
        ) from None
    alone = model(text[None], use_cache=False).logits[0]
    for logits, others, tolerance in ((packed, again, SAME_SHAPE), (packed, alone, OTHER_SHAPE)):
        difference = float((logits - others).abs().max() / alone.std())
        if not difference <= tolerance:  # also true for NaN
            raise ConfigError(
                f"config.packing: {name} does not keep the texts in a row apart: the logits of a"
                f" text depend on the text before it (by {difference:.2g} standard deviations); set"
                " it to false"
            )


def sample_continuation(
    model: nn.Module, ids: list[int], num_tokens: int, generator: torch.Generator
) -> list[int]:
    """Sample `num_tokens` that continue `ids`, with the CPU `generator` and temperature 0.8.

    Without a KV cache, whose format differs between models, and without early stopping: under FSDP
    all ranks must make the same number of forward passes.
    """
    device = next(model.parameters()).device
    sequence = torch.tensor([ids], device=device)
    for _ in range(num_tokens):
        logits = model(sequence, use_cache=False).logits[:, -1].float().cpu()
        chosen = torch.multinomial(torch.softmax(logits / 0.8, -1), 1, generator=generator)
        sequence = torch.cat([sequence, chosen.to(device)], dim=1)
    sampled: list[int] = sequence[0, len(ids) :].tolist()
    return sampled


def _load(key: str, name: str, auto: Any, **options: Any) -> Any:
    """`auto.from_pretrained`; a failure raises ConfigError, or HubUnreachableError, on one line."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    where = f"config.{key}: {name}"
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ConfigError(
            f"{where} is not a directory; give one, or a Hub id such as Qwen/Qwen2-0.5B-Instruct"
        )
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{where} needs remote code, which is never run; choose a model that does not"
            ) from None
        source = "" if Path(name).is_dir() else " from the Hub (and is not a local directory)"
        raise failed_load(where, error, source) from None


# For this run's own servers; the golden and evaluation files contain held-out texts.
_NOT_UPLOADED = (MANIFEST, GOLDEN, EVALUATION)


class UploadError(UserError):
    """The upload failed; the model stays in the run's directory."""


def upload_model(directory: Path, hub_model_id: str, private: bool) -> str:
    """Upload the files of `directory` in one commit; the URL of the repository.

    The repository is created if it does not exist. The token is that of the environment variable
    HF_TOKEN. Raises UploadError.
    """
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UploadError(
            f"config.hub_model_id: set HF_TOKEN to a token with write access to {hub_model_id}"
        )
    try:
        api = HfApi(token=token)
        url = api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=directory,
            commit_message=f"Upload {directory.name}",
            ignore_patterns=list(_NOT_UPLOADED),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UploadError(f"config.hub_model_id: {hub_model_id}: {reason}") from None
    return str(url)
