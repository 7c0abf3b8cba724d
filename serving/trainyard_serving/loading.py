"""Loading of models: the device, and what transformers would load without a word, although it
would then answer nonsense."""

from typing import Any

import torch
from safetensors import SafetensorError

from trainyard_serving.errors import ModelUnavailableError

# What transformers raises for a directory from which it can load no model.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def torch_device(device: str, threads: int) -> str:
    """The device to compute on: of `auto`, the GPU if there is one.

    Sets PyTorch's number of threads, unless `threads` is 0. Raises ModelUnavailableError.
    """
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelUnavailableError("--device cuda: PyTorch sees no GPU here")
    return device


def check_weights(report: Any) -> None:
    """Raise ValueError unless there was a weight for each parameter.

    transformers initialises the others at random. Such a file may be incomplete, or have other
    names, such as `module.` before each, which DistributedDataParallel adds.
    """
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 3} more" if missing[3:] else ""
        raise ValueError(f"weights are missing: {', '.join(missing[:3])}{more}")


def check_vocabulary(tokenizer: Any, num_embeddings: int) -> None:
    """Raise ValueError unless the model has an embedding for each token of a text.

    Special tokens may lie beyond: one for padding is often added without an embedding.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = set(tokenizer.get_vocab().values()) - special
    if not ordinary:  # transformers makes an empty one
        raise ValueError("it has no tokenizer: save it into the same folder")
    if max(ordinary) >= num_embeddings:
        raise ValueError(
            f"the tokenizer has tokens up to {max(ordinary)}, but the model only"
            f" {num_embeddings} embeddings"
        )
