"""A causal language model in memory: loads a verified directory, reads prompts, writes text."""

import logging
import sys
from collections.abc import Sequence as Seq
from typing import Any, Self

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainyard_api.golden import GOLDEN, GoldenText
from trainyard_serving.errors import BadModelError, ModelUnavailableError
from trainyard_serving.generate.batch import Batch
from trainyard_serving.generate.batchable import obstacle
from trainyard_serving.generate.chat_template import ChatTemplate, Turn
from trainyard_serving.generate.completion import PromptError, Sampling
from trainyard_serving.generate.sampling import Sampler
from trainyard_serving.generate.sequence import Sequence
from trainyard_serving.generate.text_stream import Detokenizer
from trainyard_serving.generate.token_model import TokenModel
from trainyard_serving.golden import check_text, golden_of
from trainyard_serving.verified import VerifiedModel

log = logging.getLogger(__name__)


class LanguageModel:
    """One loaded model. Its weights never change, so a request keeps the one it began with."""

    def __init__(
        self, source: VerifiedModel, model: Any, tokenizer: Any, device: torch.device
    ) -> None:
        self.source = source
        self.details: dict[str, Any] = {"engine": "torch"}
        self._tokenizer = tokenizer
        self.context_length = _context_length(model, tokenizer)
        self._chat_template = ChatTemplate(tokenizer)
        self._eos_ids = _eos_ids(model, tokenizer) | self._chat_template.end_of_turn()
        self._unk_id = _unk_id(tokenizer, self._eos_ids)
        self.tokens = TokenModel(
            model, device, self.context_length, num_tokens=len(tokenizer), never=self._unk_id
        )
        self._obstacle = obstacle(self.tokens)
        # Tokenizers that split on white space drop it; those that know some must know it all.
        self._keeps_space = any(token.isspace() for token in tokenizer.get_vocab())

    @classmethod
    def load(cls, source: VerifiedModel, device: str = "auto", threads: int = 0) -> Self:
        """Load a verified directory in Hugging Face form.

        Raises BadModelError when it holds no causal language model, and ModelUnavailableError
        when the device is not there.
        """
        if threads:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise ModelUnavailableError("--device cuda: PyTorch sees no GPU here")
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                local_files_only=True,
                use_safetensors=True,  # pickled weights can run code
                dtype=torch.float32 if device == "cpu" else "auto",
            )
            model.requires_grad_(False).train(False)
            return cls(source, model.to(device), tokenizer, torch.device(device))
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise BadModelError(f"{source.path}: cannot be loaded: {line[:500]}") from error

    def check(self) -> None:
        """Compute once, and the golden request if one came with the model.

        Raises BadModelError when no number comes out, or another than the trainer's.
        """
        logits = self.tokens.next_logits([[0]], self.tokens.new_cache())
        if not torch.isfinite(logits).any() or logits.isnan().any():
            raise BadModelError(f"{self.source.path}: the model computes NaN")
        if golden := golden_of(self.source, GoldenText):
            self._check_golden(golden)
        if self._obstacle:
            log.warning(
                "%s: its texts are written one at a time, not together: %s",
                self.source.path,
                self._obstacle,
            )

    def _check_golden(self, golden: GoldenText) -> None:
        cache = self.tokens.new_cache()

        def encode(text: str) -> list[int]:
            return list(self._tokenizer(text)["input_ids"])

        def logits(unread: list[int], ids: list[int]) -> list[float]:
            return list(self.tokens.logits([unread], cache)[0, ids].tolist())

        try:
            check_text(self.source, golden, encode, logits, self.tokens.exact)
        except (IndexError, ValueError) as error:  # a token that this model doesn't have
            raise BadModelError(f"{self.source.path}: {GOLDEN} is not this model's") from error

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return self._chat_template.exists

    def encode(self, prompt: str) -> list[int]:
        """Token ids of `prompt`.

        Raises PromptError when it is empty, too long or holds characters the model never saw.
        """
        return self._encode(prompt, add_special_tokens=True)

    def encode_chat(self, conversation: Seq[Turn]) -> list[int]:
        """Token ids of the conversation up to where the assistant's next turn begins.

        Raises PromptError as `encode` does, and when the chat template refuses it.
        """
        # The template has written the special tokens.
        return self._encode(self._chat_template.render(conversation), add_special_tokens=False)

    def _encode(self, prompt: str, add_special_tokens: bool) -> list[int]:
        encoding = self._tokenizer(
            prompt,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids: list[int] = encoding["input_ids"]
        if unknown := self._unknown_characters(prompt, ids, encoding["offset_mapping"]):
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise PromptError(
                f"this model does not know these characters of the prompt: {shown}{more}",
                "unknown_characters",
            )
        if not ids:
            raise PromptError("the prompt is empty: give this model text to go on", "empty_prompt")
        if len(ids) > self.context_length:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, but this model reads at most"
                f" {self.context_length}: shorten it (max_tokens is not limited by this)",
                "context_length_exceeded",
            )
        return ids

    def begin(self, index: int, prompt: list[int], sampling: Sampling) -> Sequence:
        """The completion of `prompt` (from `encode`), for a batch to write."""
        return Sequence(
            index,
            prompt,
            sampling,
            Sampler(sampling, self.tokens.device),
            Detokenizer(self._decode, prompt),
            self._eos_ids,
            self.context_length,
        )

    def batch(self, capacity: int) -> Batch:
        """An empty batch; of one place, where this model's texts can't be written together."""
        return Batch(self.tokens, 1 if self._obstacle else capacity)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _unknown_characters(
        self, prompt: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> list[str]:
        """Characters without a token of their own, in order, each once."""
        covered = bytearray(len(prompt))
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token != self._unk_id:
                covered[start:end] = b"\1" * (end - start)
        missing = (char for char, known in zip(prompt, covered, strict=True) if not known)
        return [char for char in dict.fromkeys(missing) if self._keeps_space or not char.isspace()]


def _context_length(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(positions or sys.maxsize, int(tokenizer.model_max_length))


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)


def _unk_id(tokenizer: Any, eos_ids: frozenset[int]) -> int | None:
    """The unknown token's id, where it means only that (GPT-2's is also its end of text)."""
    unk = tokenizer.unk_token_id
    shared = eos_ids | {tokenizer.bos_token_id}
    return None if unk in shared else unk
