"""One generated text: selects tokens from logits, and turns them into text that is final."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainyard_serving.generate.engine import Chunk, FinishReason, SamplingOptions

# Below this, dividing by the temperature would overflow float32; only the top token would remain.
GREEDY_BELOW = 1e-4
# U+FFFD at the end of decoded text means that some bytes of a character are still missing.
REPLACEMENT = "\ufffd"
# Tokens of the prompt that are decoded together with the first new ones: spacing depends on them.
CONTEXT_TOKENS = 5

Sampler = Callable[[Tensor], int]


class TextSequence:
    """A prompt and the text generated for it, independent of the batch it is in.

    Attributes:
        num_cached: tokens of the window in the key-value cache; 0 requires a new cache.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        options: SamplingOptions,
        sampler: Sampler,
        detokenizer: "Detokenizer",
        eos_ids: frozenset[int],
        context_length: int,
    ) -> None:
        self.num_cached = 0
        self._window = list(prompt)  # the tokens that the model attends to
        self._index = index
        self._max_tokens = options.max_tokens
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopMatcher(options.stop)
        self._grammar = options.grammar.copy() if options.grammar else None
        self._eos_ids = eos_ids
        self._context_length = context_length
        self._num_tokens = 0
        self._num_reported = 0  # tokens in the chunks so far

    @property
    def uncached(self) -> list[int]:
        """Tokens that the model must process before the next one can be sampled."""
        return self._window[self.num_cached :]

    def advance(self, logits: Tensor) -> Chunk | None:
        """Sample the next token from `logits` [vocabulary]; returns newly final text, if any.

        Only the last chunk has a finish reason.
        """
        if self._grammar:
            self._grammar.mask(logits)
        token = self._sampler(logits)
        complete = self._grammar is not None and self._grammar.accept(token)
        self._num_tokens += 1
        self._window.append(token)
        if len(self._window) > self._context_length:
            # Cached keys contain their positions, so a shifted window must be processed again.
            # Dropping half a context at a time makes that rare.
            self._window = self._window[-max(1, self._context_length // 2) :]
            self.num_cached = 0
        return self._chunk(token, complete)

    def _chunk(self, token: int, complete: bool) -> Chunk | None:
        stops = self._stops
        eos, at_limit = token in self._eos_ids, self._num_tokens == self._max_tokens
        text = "" if eos else stops.push(self._detokenizer.push(token))
        ended = eos or complete
        if (ended or at_limit) and not stops.matched:
            text += stops.push(self._detokenizer.flush())
            text += stops.flush()
        if stops.matched or ended or at_limit:
            reason: FinishReason = "stop" if stops.matched or ended else "length"
            return Chunk(self._index, text, self._count_unreported(), reason)
        return Chunk(self._index, text, self._count_unreported()) if text else None

    def _count_unreported(self) -> int:
        count = self._num_tokens - self._num_reported
        self._num_reported = self._num_tokens
        return count


def make_sampler(options: SamplingOptions, device: torch.device) -> Sampler:
    """A function from logits [vocabulary] to a token id; -inf marks excluded tokens.

    The same seed gives the same tokens for the same logits. transformers' TopPLogitsWarper is not
    used because it returns logits, so that the softmax would be computed twice.
    """
    generator = torch.Generator(device)
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)

    def sample(logits: Tensor) -> int:
        if options.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        probs = torch.softmax(logits.float() / options.temperature, dim=-1)
        if options.top_p < 1:
            probs = nucleus(probs, options.top_p)
        return int(torch.multinomial(probs, 1, generator=generator))

    return sample


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """`probs` [vocabulary] with all but the smallest set of total probability >= top_p set to 0.

    The most likely token always remains. Holtzman et al. 2020, arXiv:1904.09751.
    """
    ordered, order = probs.sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # total probability of the tokens before each
    ordered[1:][before[1:] >= top_p] = 0
    return torch.zeros_like(probs).scatter(-1, order, ordered)


class Detokenizer:
    """Decodes tokens one by one into text that later tokens cannot change.

    tokenizers' DecodeStream is not used: it raises "Invalid prefix encountered" for tokenizers with
    byte fallback, such as Llama's, when a token completes no valid character.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._num_sent = len(self._ids)  # ids whose text was returned; they are context

    def push(self, token: int) -> str:
        """The text that `token` makes final; "" while a character is incomplete."""
        self._ids.append(token)
        text = self.flush()
        if text.endswith(REPLACEMENT):
            return ""
        self._ids = self._ids[self._num_sent :] if text else self._ids
        self._num_sent = len(self._ids) if text else self._num_sent
        return text

    def flush(self) -> str:
        """The remaining text at the end, including incomplete characters."""
        before = self._decode(self._ids[: self._num_sent])
        return self._decode(self._ids)[len(before) :]


class StopMatcher:
    """Ends a stream of text before the first stop string, even if that is split over pieces.

    transformers' StopStringCriteria does not fit: it matches tokens, after their text was sent.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop string
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the stream that may be sent; sets `matched` at a stop string."""
        self._held += text
        matches = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if matches:
            self.matched = True
            sent, self._held = self._held[: min(matches)], ""
            return sent
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sent, self._held = self._held[:cut], self._held[cut:]
        return sent

    def flush(self) -> str:
        """The text held back, once the stream has ended without a stop string."""
        sent, self._held = self._held, ""
        return sent


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
