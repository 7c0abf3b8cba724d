"""A causal language model as decoding sees it: token ids in, the next token's logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class TokenModel:
    """The tensors' side of a model; its words are LanguageModel's.

    Attributes:
        context_length: tokens it can attend to.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        context_length: int,
        num_tokens: int,
        never: int | None = None,
    ) -> None:
        """
        Args:
            num_tokens: the tokenizer's; ids above are padding of the vocabulary, not tokens.
            never: another token that must not be written.
        """
        self.module = model
        self.device = device
        self.context_length = context_length
        self._num_tokens = num_tokens
        self._never = never

    @property
    def exact(self) -> bool:
        """Whether it computes in 32 bits."""
        return bool(self.module.dtype == torch.float32)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache."""
        return DynamicCache(config=self.module.config)

    @torch.inference_mode()
    def logits(
        self, unread: Sequence[list[int]], cache: DynamicCache, padding: Sequence[int] = ()
    ) -> Tensor:
        """Logits [rows, vocabulary] of the token after each row's unread ones, which the cache
        then holds as well.

        Args:
            unread: as many tokens in each row.
            padding: for each row, how many columns at the left of the cache hold nothing.
        """
        ids = torch.tensor(unread, device=self.device)
        places: dict[str, Tensor] = {}
        if any(padding):
            width = cache.get_seq_length() + ids.shape[1]
            columns = torch.arange(width, device=self.device)
            begin = torch.tensor(padding, device=self.device)[:, None]
            places["attention_mask"] = columns >= begin
            places["position_ids"] = columns[-ids.shape[1] :] - begin
        output = self.module(input_ids=ids, past_key_values=cache, logits_to_keep=1, **places)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    @torch.inference_mode()
    def next_logits(
        self, unread: Sequence[list[int]], cache: DynamicCache, padding: Sequence[int] = ()
    ) -> Tensor:
        """As `logits`, of the tokenizer's tokens, with -inf for what must not be written."""
        logits = self.logits(unread, cache, padding)[:, : self._num_tokens]
        if self._never is not None:
            logits[:, self._never] = -torch.inf
        return logits
