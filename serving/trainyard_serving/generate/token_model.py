"""A causal language model without its tokenizer: token ids to logits, with a key-value cache."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# The trial of `why_not_batchable`: two prompts, and a token that follows both. Every vocabulary has
# these tokens.
LONG, SHORT, NEXT = [0, 1, 2, 1, 0, 2, 1], [2, 1, 0], [1]


class TokenModel:
    """The neural network without its tokenizer.

    Attributes:
        context_length: tokens that it can attend to.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        context_length: int,
        num_tokens: int,
        excluded: int | None = None,
    ) -> None:
        """
        Args:
            num_tokens: of the tokenizer; higher ids only pad the vocabulary.
            excluded: a token that must not be generated.
        """
        self.module = model
        self.device = device
        self.context_length = context_length
        self._num_tokens = num_tokens
        self._excluded = excluded

    @property
    def is_fp32(self) -> bool:
        return bool(self.module.dtype == torch.float32)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache."""
        return DynamicCache(config=self.module.config)

    @torch.inference_mode()
    def logits(
        self, uncached: Sequence[list[int]], cache: DynamicCache, padding: Sequence[int] = ()
    ) -> Tensor:
        """Process each row's uncached tokens, which the cache contains afterwards.

        Args:
            uncached: the same number of tokens for each row.
            padding: for each row, the number of empty columns at the left of the cache.

        Returns:
            The logits [rows, vocabulary] of each row's next token.
        """
        ids = torch.tensor(uncached, device=self.device)
        masks: dict[str, Tensor] = {}
        if any(padding):
            width = cache.get_seq_length() + ids.shape[1]
            columns = torch.arange(width, device=self.device)
            first = torch.tensor(padding, device=self.device)[:, None]
            masks["attention_mask"] = columns >= first
            masks["position_ids"] = columns[-ids.shape[1] :] - first
        output = self.module(input_ids=ids, past_key_values=cache, logits_to_keep=1, **masks)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    @torch.inference_mode()
    def all_logits(self, uncached: list[int], cache: DynamicCache) -> Tensor:
        """As `logits` of one row, after each of its tokens: [tokens, vocabulary]."""
        ids = torch.tensor([uncached], device=self.device)
        # 0 keeps all.
        logits: Tensor = self.module(input_ids=ids, past_key_values=cache, logits_to_keep=0).logits
        return logits[0]

    @torch.inference_mode()
    def selectable(self, logits: Tensor) -> Tensor:
        """`logits` [rows, vocabulary] of the tokenizer's tokens, with -inf for the excluded one.

        A view: `logits` change, too.
        """
        logits = logits[:, : self._num_tokens]
        if self._excluded is not None:
            logits[:, self._excluded] = -torch.inf
        return logits


class PaddedCache:
    """The key-value caches of several texts as rows of one cache, padded on the left.

    Rows join and leave; no column is padding in all rows. A single row is its own cache, unchanged,
    which works for caches of any kind. transformers' DynamicCache can drop rows, but not add them.

    Attributes:
        padding: for each row, the number of empty columns at its left.
    """

    def __init__(self) -> None:
        self.padding: list[int] = []
        self._cache: DynamicCache | None = None

    @property
    def cache(self) -> DynamicCache:
        """The cache that the model reads and extends."""
        assert self._cache is not None, "the cache has no rows"
        return self._cache

    def add_row(self, row: DynamicCache) -> None:
        """Append a cache with one row, which must not be used afterwards."""
        if self._cache is None:
            self._cache, self.padding = row, [0]
            return
        own_width, row_width = self._cache.get_seq_length(), row.get_seq_length()
        width = max(own_width, row_width)
        for layer, new in zip(_layers(self._cache), _layers(row), strict=True):
            layer.keys = torch.cat([_padded(layer.keys, width), _padded(new.keys, width)])
            layer.values = torch.cat([_padded(layer.values, width), _padded(new.values, width)])
            new.keys = new.values = None  # at once: the copies need as much memory
        self.padding = [count + width - own_width for count in self.padding] + [width - row_width]

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order, without columns that are now empty in all."""
        if not rows:
            self._cache, self.padding = None, []
        elif len(rows) < len(self.padding):
            empty = min(self.padding[row] for row in rows)
            for layer in _layers(self.cache):
                layer.keys = layer.keys[:, :, empty:]
                layer.values = layer.values[:, :, empty:]
                layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
            self.padding = [self.padding[row] - empty for row in rows]


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers; in a cache with several rows all are DynamicLayers."""
    return list(cache.layers)


def _padded(states: Tensor, width: int) -> Tensor:
    """`states` [rows, heads, columns, size] with empty columns at the left."""
    return pad(states, (0, 0, width - states.shape[2], 0))


def why_not_batchable(model: TokenModel) -> str | None:
    """Why the model cannot decode several texts together; None if it can.

    Looks at the model's class first, then compares logits of texts alone and together.
    """
    kinds = {type(layer).__name__ for layer in model.new_cache().layers}
    if unknown := kinds - {DynamicLayer.__name__}:
        return f"its cache has layers of another kind ({', '.join(sorted(unknown))})"
    parameters = inspect.signature(model.module.forward).parameters.keys()
    if missing := {"attention_mask", "position_ids"} - parameters:
        return f"it takes no {' and '.join(sorted(missing))}"
    rope: Any = getattr(model.module.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return "its positions depend on the longest text of the batch (longrope)"
    if model.context_length <= len(LONG):
        return f"its context of {model.context_length} tokens is too short for a trial"
    try:
        alone, together = _logits_alone(model), _logits_together(model)
    except Exception as error:
        return f"a trial failed ({type(error).__name__}: {error})"
    difference = float((alone - together).abs().max())
    # Rounding changes logits by a millionth of their size in fp32, by a hundredth in 16 bits. An
    # ignored mask or position changes them by about their size.
    bound = (1e-3 if model.is_fp32 else 0.1) * float(alone.abs().max())
    return None if difference <= bound else f"in a trial its logits differed by {difference:.3g}"


def _logits_alone(model: TokenModel) -> Tensor:
    """Logits [2, vocabulary] after each prompt and NEXT."""
    rows = []
    for prompt in (LONG, SHORT):
        cache = model.new_cache()
        model.logits([prompt], cache)
        rows.append(model.logits([NEXT], cache))
    return torch.cat(rows)


def _logits_together(model: TokenModel) -> Tensor:
    """The same, from two rows, the first of which is prefilled in two pieces."""
    batch = PaddedCache()
    for pieces in ((LONG[:4], LONG[4:]), (SHORT,)):
        cache = model.new_cache()
        for piece in pieces:
            model.logits([piece], cache)
        batch.add_row(cache)
    return model.logits([NEXT, NEXT], batch.cache, batch.padding)
