"""What transformers would load without a word, and which would then answer nonsense."""

from typing import Any

from safetensors import SafetensorError

# What transformers raises for a directory from which it can load no model.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


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
