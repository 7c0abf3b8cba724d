"""A loaded causal language model: loads and checks a verified directory, encodes prompts."""

import logging
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainyard_api.golden import GOLDEN, GoldenText
from trainyard_serving.errors import BadModelError, one_line
from trainyard_serving.generate.batch import Batch
from trainyard_serving.generate.chat_template import ChatTemplate
from trainyard_serving.generate.engine import (
    ContextLengthError,
    JsonDict,
    PromptError,
    SamplingOptions,
)
from trainyard_serving.generate.grammar import JsonGrammar, JsonGrammars
from trainyard_serving.generate.prompts import PromptEncoder
from trainyard_serving.generate.sampling import Sampler
from trainyard_serving.generate.sequence import Detokenizer, TextSequence
from trainyard_serving.generate.token_model import TokenModel, why_not_batchable
from trainyard_serving.generate.vocabulary import Vocabulary
from trainyard_serving.loading import LOAD_ERRORS, check_vocabulary, check_weights, torch_device
from trainyard_serving.model_store.verified import VerifiedModel, golden_request

log = logging.getLogger(__name__)

# In the names of classes: transformers would load their weights without the head that they have.
_OTHER_TASKS = ("Classification", "QuestionAnswering", "MaskedLM")


class LanguageModel:
    """A model and its tokenizer. It never changes; a request keeps the one it started with."""

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
            model, device, self.context_length, num_tokens=len(tokenizer), excluded=self._unk_id
        )
        self._why_not_batchable = why_not_batchable(self.tokens)
        num_embeddings: int = model.get_input_embeddings().weight.shape[0]
        check_vocabulary(tokenizer, num_embeddings)
        self.vocabulary = Vocabulary(tokenizer, min(len(tokenizer), num_embeddings))
        self._grammars = JsonGrammars(tokenizer, self._eos_ids)
        self._prompts = PromptEncoder(tokenizer, self.context_length, num_embeddings, self._unk_id)

    @classmethod
    def load(cls, source: VerifiedModel, device: str = "auto", threads: int = 0) -> Self:
        """Load a verified directory in Hugging Face format.

        Raises BadModelError when it contains no causal language model, and ModelUnavailableError
        when the device is not available.
        """
        device = torch_device(device, threads)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                local_files_only=True,
                use_safetensors=True,  # pickled weights can run code
                dtype=torch.float32 if device == "cpu" else "auto",
                output_loading_info=True,
            )
            model, report = loaded
            _check_task(model.config)
            check_weights(report)
            model.requires_grad_(False).train(False)
            return cls(source, model.to(device), tokenizer, torch.device(device))
        except LOAD_ERRORS as error:
            message = f"{source.path}: cannot be loaded: {one_line(error, 500)}"
            raise BadModelError(message) from error

    def check(self) -> None:
        """Compute logits once, and answer the golden request if the model has one.

        Raises BadModelError when the logits are NaN, or differ from the trainer's.
        """
        logits = self.tokens.selectable(self.tokens.logits([[0]], self.tokens.new_cache()))
        if not torch.isfinite(logits).any() or logits.isnan().any():
            raise BadModelError(f"{self.source.path}: the model computes NaN")
        if golden := golden_request(self.source, GoldenText):
            self._check_golden(golden)
        if self._why_not_batchable:
            log.warning(
                "%s: its texts are generated one at a time, not together: %s",
                self.source.path,
                self._why_not_batchable,
            )

    def _check_golden(self, golden: GoldenText) -> None:
        where = self.source.path / GOLDEN
        if list(self._tokenizer(golden.prompt)["input_ids"]) != golden.prompt_ids:
            raise BadModelError(f"{where}: the tokenizer encodes the prompt differently")
        cache = self.tokens.new_cache()
        uncached = golden.prompt_ids
        positions = zip(golden.next_ids, golden.top_ids, golden.top_logits, strict=True)
        for number, (token, ids, expected) in enumerate(positions, start=1):
            try:
                logits = self.tokens.logits([uncached], cache)[0, ids].tolist()
            except (IndexError, ValueError) as error:  # a token that this model does not have
                raise BadModelError(f"{where} belongs to another model") from error
            # Devices and libraries round differently; a wrong weight changes logits by 1 or more.
            scale = max(abs(value) for value in expected)
            tolerance = 0.01 + 0.01 * scale if self.tokens.is_fp32 else 0.1 + 0.05 * scale
            difference = max(abs(a - b) for a, b in zip(logits, expected, strict=True))
            if not difference <= tolerance:  # also true for NaN
                raise BadModelError(
                    f"{where}: the model's logits differ from the trainer's: token {number} after"
                    f" the prompt by {difference:.3g} (at most {tolerance:.3g})"
                )
            uncached = [token]

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template.exists

    def encode(self, prompt: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `prompt`.

        Raises PromptError when it is empty, too long or has characters without a token.
        """
        return self._prompts.encode(prompt, "prompt", add_special_tokens)

    def encode_chat(
        self,
        conversation: Sequence[JsonDict],
        tools: Sequence[JsonDict] | None = None,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of the conversation up to the beginning of the assistant's next message.

        Raises PromptError as `encode` does, and when the chat template refuses the conversation.
        """
        text = self._chat_template.render(conversation, tools, add_generation_prompt)
        # A template adds the special tokens itself.
        return self._prompts.encode(text, "messages", add_special_tokens)

    def grammar(self, schema: JsonDict) -> JsonGrammar:
        """What an answer in JSON of `schema` may be.

        Raises PromptError for a schema, or a model, with which that is not possible.
        """
        return self._grammars.compile(schema)

    def token_strings(self, ids: list[int]) -> list[str]:
        """The tokens as the tokenizer's vocabulary has them."""
        strings: list[str] = self._tokenizer.convert_ids_to_tokens(ids)
        return strings

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Raise PromptError when a prompt of token ids cannot be read."""
        if not ids:
            message = "the prompt is empty: give this model tokens to continue"
            raise PromptError(message, "empty_prompt")
        if len(ids) > self.context_length:
            raise ContextLengthError(len(ids), self.context_length)
        self.check_tokens(ids, "prompt")

    def check_tokens(self, ids: Iterable[int], param: str) -> None:
        """Raise PromptError when the vocabulary has no such token."""
        if (unknown := max(ids, default=0)) >= self.vocabulary.num_tokens:
            last = self.vocabulary.num_tokens - 1
            message = f"{param}: this model has no token {unknown}: its last one is {last}"
            raise PromptError(message, "unknown_token", param)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def new_sequence(self, index: int, prompt: list[int], options: SamplingOptions) -> TextSequence:
        """The text to generate for a prompt's tokens; add it to a batch."""
        eos_ids = frozenset() if options.ignore_eos else self._eos_ids
        stop_ids = eos_ids | options.stop_token_ids
        decode = partial(self.decode, skip_special_tokens=options.skip_special_tokens)
        return TextSequence(
            index,
            prompt,
            options,
            Sampler(options, self.tokens.device, prompt, stop_ids),
            Detokenizer(decode, prompt),
            stop_ids,
            self.context_length,
        )

    def new_batch(self, capacity: int) -> Batch:
        """An empty batch; its capacity is 1 if this model cannot decode texts together."""
        return Batch(self.tokens, 1 if self._why_not_batchable else capacity)


def _check_task(config: Any) -> None:
    """Raise ValueError if the model was trained for another task."""
    for name in config.architectures or []:
        if any(task in name for task in _OTHER_TASKS):
            raise ValueError(f"{name} is not a causal language model")


def _context_length(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(positions or sys.maxsize, int(tokenizer.model_max_length))


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)


def _unk_id(tokenizer: Any, eos_ids: frozenset[int]) -> int | None:
    """The id of the unknown token, unless it is also another one (GPT-2's is its end of text)."""
    unk = tokenizer.unk_token_id
    shared = eos_ids | {tokenizer.bos_token_id}
    return None if unk in shared else unk
