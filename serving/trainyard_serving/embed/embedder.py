"""A loaded embedding model: loads and checks a verified directory, and computes embeddings."""

import inspect
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from trainyard_serving.batcher import EncodedText
from trainyard_serving.embed.pooling import Mode, Pooling, read_pooling
from trainyard_serving.errors import ApiError, BadModelError, one_line
from trainyard_serving.generate.prompts import prefix_beyond
from trainyard_serving.loading import LOAD_ERRORS, check_vocabulary, check_weights, torch_device
from trainyard_serving.model_store.verified import VerifiedModel

if TYPE_CHECKING:
    from trainyard_serving.embed.settings import EmbedSettings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int32]


class InputError(ApiError):
    """The model cannot read this input; the message says what to change."""

    def __init__(self, message: str, code: str, param: str) -> None:
        super().__init__(400, message, code, param.partition("[")[0])


class Embedder:
    """A model and its tokenizer. It never changes; a request keeps the one it started with.

    Attributes:
        context_length: the longest text, in tokens, special ones included.
        mode: the pooling of hidden states.
        normalize: whether the model's embeddings have length 1.
        dimensions: of an embedding.
        details: additional fields of /health and /ready.
    """

    def __init__(
        self,
        source: VerifiedModel,
        model: Any,
        tokenizer: Any,
        pooling: Pooling,
        device: torch.device,
        max_tokens: int = sys.maxsize,
    ) -> None:
        """`max_tokens`: of a text, whatever the model's context is."""
        self.source = source
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._lowercase = pooling.lowercase
        self._num_embeddings: int = model.get_input_embeddings().weight.shape[0]
        check_vocabulary(tokenizer, self._num_embeddings)
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
        self.context_length = min(max_tokens, _context_length(model, tokenizer, pooling))
        self._pad_id = _pad_id(model, tokenizer, self._num_embeddings)
        self._trial_texts = _trial_texts(tokenizer)
        self.mode: Mode = pooling.mode or ("lasttoken" if self._is_causal() else "mean")
        self.normalize = pooling.normalize
        self._why_not_batchable = self._try_together()
        self.dimensions: int = self.compute(self._trial_texts[:1]).shape[1]
        self._matryoshka = _matryoshka(model.config)
        self.details: dict[str, Any] = {"engine": "torch", **self.description}

    @classmethod
    def load(cls, source: VerifiedModel, settings: "EmbedSettings") -> Self:
        """Load a verified directory in Hugging Face format.

        Raises BadModelError when it contains no model that embeds texts, ModelUnavailableError when
        the device is not available.
        """
        device = torch_device(settings.device, settings.threads)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            pooling = read_pooling(source.path)
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
            loaded: Any = AutoModel.from_pretrained(
                source.path,
                local_files_only=True,
                use_safetensors=True,  # pickled weights can run code
                trust_remote_code=False,
                dtype=torch.float32 if device == "cpu" else "auto",
                output_loading_info=True,
            )
            model, report = loaded
            _check_class(model.config)
            # BERT's pooler is not used here, and checkpoints of masked language models lack it.
            missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
            check_weights({"missing_keys": missing})
            model.requires_grad_(False).train(False)
            model.config.use_cache = False  # of keys and values, which only generating needs
            return cls(
                source,
                model.to(device),
                tokenizer,
                pooling,
                torch.device(device),
                settings.max_batch_tokens,
            )
        except (*LOAD_ERRORS, AttributeError, TypeError) as error:  # such as of a model of images
            message = f"{source.path}: cannot be loaded: {one_line(error, 500)}"
            raise BadModelError(message) from error

    @property
    def description(self) -> dict[str, Any]:
        """How embeddings are made, for clients."""
        return {
            "max_model_len": self.context_length,
            "pooling": self.mode,
            "normalize": self.normalize,
            "dimensions": self.dimensions,
            "matryoshka_dimensions": self._matryoshka,
        }

    def check(self) -> None:
        """Compute an embedding. Raises BadModelError when it is not finite."""
        if not np.isfinite(self.compute(self._trial_texts)).all():
            raise BadModelError(f"{self.source.path}: the model computes NaN")
        if self._why_not_batchable:
            log.warning(
                "%s: its texts are computed one at a time, not together: %s",
                self.source.path,
                self._why_not_batchable,
            )

    def encode(self, text: str, param: str, truncate: bool) -> TokenIds:
        """Token ids of `text`, with the special tokens that the tokenizer adds.

        Raises InputError, which names `param`, when it is empty, or too long and not to be
        truncated.
        """
        if self._lowercase:
            text = text.lower()
        prefix = prefix_beyond(self._tokenizer, text, 2 * self.context_length)
        if prefix is not None:
            if not truncate:
                raise self._too_long(param, f"more than {2 * self.context_length}")
            text = prefix
        # Without the tokenizer's own truncation, which other threads would see.
        encoding = self._tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = encoding["input_ids"]
        if not text or not ids:
            raise InputError(
                f"{param} is empty: give this model text to embed", "empty_input", param
            )
        if len(ids) > self.context_length:
            if not truncate:
                raise self._too_long(param, len(ids))
            mask: list[int] = encoding["special_tokens_mask"]
            last = len(ids)
            while last > 0 and mask[last - 1]:
                last -= 1
            final = ids[last:]
            ids = ids[: self.context_length - len(final)] + final
        if max(ids) >= self._num_embeddings:  # a GPU would never recover from it
            special = self._tokenizer.convert_ids_to_tokens(max(ids))
            message = f"{param}: this model has no embedding for its token {special!r}"
            raise InputError(message, "unknown_token", param)
        return np.array(ids, np.int32)

    def check_ids(self, ids: Sequence[int], param: str, truncate: bool) -> TokenIds:
        """Token ids of a request, as they are. Raises InputError as `encode` does."""
        if len(ids) > self.context_length:
            if not truncate:
                raise self._too_long(param, len(ids))
            ids = ids[: self.context_length]
        if (unknown := max(ids)) >= min(self._num_embeddings, len(self._tokenizer)):
            last = min(self._num_embeddings, len(self._tokenizer)) - 1
            message = f"{param}: this model has no token {unknown}: its last one is {last}"
            raise InputError(message, "unknown_token", param)
        return np.array(ids, np.int32)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise InputError unless embeddings may be cut to so many numbers."""
        if dimensions in (None, self.dimensions):
            return
        assert dimensions is not None
        if self._matryoshka is None:
            message = (
                f"dimensions: this model was not trained for embeddings of other than"
                f" {self.dimensions} dimensions: leave it out"
            )
            raise InputError(message, "unsupported_parameter", "dimensions")
        if self._matryoshka and dimensions not in self._matryoshka:
            allowed = ", ".join(map(str, self._matryoshka))
            message = f"dimensions: this model was trained for {allowed} (got {dimensions})"
            raise InputError(message, "invalid_value", "dimensions")
        if dimensions > self.dimensions:
            message = f"dimensions: at most {self.dimensions} of this model (got {dimensions})"
            raise InputError(message, "invalid_value", "dimensions")

    def compute(self, encoded: Sequence[EncodedText]) -> Floats:
        """Embeddings (texts, dimensions) of one or more encoded texts, not normalised."""
        if self._why_not_batchable:
            return np.concatenate([self._compute([ids]) for ids in encoded])
        return self._compute(encoded)

    def _compute(self, encoded: Sequence[EncodedText]) -> Floats:
        states, lengths = self._hidden_states(encoded)
        pooled: Floats = _pool(states.float(), lengths, self.mode).cpu().numpy()
        return pooled

    @torch.inference_mode()
    def _hidden_states(self, encoded: Sequence[EncodedText]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, size) of texts that are padded on the right, and lengths (B)."""
        lengths = torch.tensor([len(ids) for ids in encoded])
        padded = np.full((len(encoded), int(lengths.max())), self._pad_id, np.int64)
        for row, ids in enumerate(encoded):
            padded[row, : len(ids)] = ids
        lengths = lengths.to(self._device)
        inputs = {"input_ids": torch.from_numpy(padded).to(self._device)}
        if self._takes_mask:
            columns = torch.arange(padded.shape[1], device=self._device)
            inputs["attention_mask"] = (columns < lengths[:, None]).long()
        states: Tensor = self._model(**inputs).last_hidden_state
        return states, lengths

    def _is_causal(self) -> bool:
        """Whether a token's hidden state depends only on the tokens before it: by a trial."""
        first = self._trial_texts[0][0]
        texts = [[first, ids[-1]] for ids in self._trial_texts]
        one, two = (self._hidden_states([ids])[0][0, 0] for ids in texts)
        return bool((one - two).abs().max() <= 1e-6 * one.abs().max())

    def _try_together(self) -> str | None:
        """Why the model cannot compute several texts together; None if it can."""
        alone = np.concatenate([self._compute([ids]) for ids in self._trial_texts])
        if depends := _depends_on_batch(self._model.config):
            return depends
        try:
            difference = float(np.abs(self._compute(self._trial_texts) - alone).max())
        except Exception as error:
            return f"a trial failed ({type(error).__name__}: {error})"
        # Rounding changes them by a millionth of their size in fp32, by a hundredth in 16 bits. An
        # ignored mask changes them by about their size.
        bound = (1e-4 if self._model.dtype == torch.float32 else 0.1) * float(np.abs(alone).max())
        if difference <= bound:
            return None
        return f"in a trial they differed by {difference:.3g}"

    def _too_long(self, param: str, num_tokens: int | str) -> InputError:
        """By the words "this model's maximum context length is" LiteLLM recognises it."""
        return InputError(
            f"{param} has {num_tokens} tokens, but this model's maximum context length is"
            f" {self.context_length} tokens: shorten it, or send truncate: true",
            "context_length_exceeded",
            param,
        )


def _pool(states: Tensor, lengths: Tensor, mode: Mode) -> Tensor:
    """Embeddings (B, size) of hidden states (B, T, size), the first `lengths` (B) of each text."""
    rows = torch.arange(len(states), device=states.device)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[rows, lengths - 1]
    columns = torch.arange(states.shape[1], device=states.device)
    padding = (columns >= lengths[:, None])[:, :, None]
    if mode == "max":
        return states.masked_fill(padding, -torch.inf).amax(1)
    return states.masked_fill(padding, 0).sum(1) / lengths[:, None]


def _check_class(config: Any) -> None:
    """Raise ValueError if transformers' own class is not the model's."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{config.model_type} is an encoder with a decoder, which is not supported"
        )
    if "AutoModel" in (getattr(config, "auto_map", None) or {}):
        raise ValueError(
            "its config.json names code of its own (auto_map), which is not run here:"
            " without it the embeddings could be others"
        )
    # BigBird changes to full attention at the first short text, for all texts that follow.
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ValueError(
            "attention_type block_sparse is not supported, because an embedding would depend on the"
            " texts before it: set attention_type to original_full in config.json"
        )


def _depends_on_batch(config: Any) -> str | None:
    """What of a model depends on the longest text of a batch, if it is long; else None."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    for kind in ("longrope", "dynamic"):
        if kind in kinds:
            return f"its positions depend on the longest text of the batch ({kind})"
    return None


def _context_length(model: Any, tokenizer: Any, pooling: Pooling) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or -1
    positions = positions if positions > 0 else sys.maxsize  # XLNet's are -1
    for name, module in model.named_modules():
        # Not only an nn.Embedding: I-BERT has a class of its own, for quantized weights.
        if name.endswith("position_embeddings") and hasattr(module, "padding_idx"):
            # RoBERTa and its relatives count positions from the one after the padding's.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = min(positions, module.weight.shape[0] - first)
    return min(positions, int(tokenizer.model_max_length), pooling.max_tokens or sys.maxsize)


def _pad_id(model: Any, tokenizer: Any, num_embeddings: int) -> int:
    """A token to pad with; a mask hides it, but it must have an embedding."""
    for known in (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)):
        if known is not None and 0 <= known < num_embeddings:
            return int(known)
    return 0


def _trial_texts(tokenizer: Any) -> list[EncodedText]:
    """Two texts of ordinary tokens that begin alike and end differently, one longer."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = sorted(set(tokenizer.get_vocab().values()) - special)
    one, two = ordinary[0], ordinary[-1]
    return [[one, two, one, two, one], [one, one, two]]


def _matryoshka(config: Any) -> list[int] | None:
    """Sizes to which embeddings may be cut; none named: any; None: they may not."""
    sizes = getattr(config, "matryoshka_dimensions", None)
    if sizes:
        return sorted(map(int, sizes))
    return [] if getattr(config, "is_matryoshka", False) else None
