"""One generated text: turns tokens into text that is final, and ends it."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from trainyard_serving.generate.engine import Chunk, FinishReason, SamplingOptions, TokenLogprob
from trainyard_serving.generate.logprobs import token_logprobs
from trainyard_serving.generate.sampling import Sampler

# U+FFFD in decoded text stands for bytes that are no complete character; at its end, some of them
# are still missing.
REPLACEMENT = "\ufffd"
# Tokens of the prompt that are decoded together with the first new ones: spacing depends on them.
CONTEXT_TOKENS = 5


class TextSequence:
    """A prompt and the text generated for it, independent of the batch it is in.

    Attributes:
        num_cached: tokens of the window in the key-value cache; 0 requires a new cache.
        sampler: selects its tokens.
        num_top: how many of the most likely tokens to report; None reports no log-probabilities.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        options: SamplingOptions,
        sampler: Sampler,
        detokenizer: "Detokenizer",
        stop_ids: Collection[int],
        context_length: int,
    ) -> None:
        """
        Args:
            stop_ids: tokens that end the text.
        """
        self.num_cached = 0
        self.sampler = sampler
        self.num_top = options.logprobs
        self._window = list(prompt)  # the tokens that the model attends to
        self._index = index
        self._options = options
        self._detokenizer = detokenizer
        self._stops = StopMatcher(options.stop, options.include_stop)
        self._stop_ids = stop_ids
        self._context_length = context_length
        self._num_tokens = 0
        self._num_reported = 0  # tokens in the chunks so far
        self._logprobs: list[TokenLogprob] = []  # not yet in a chunk
        self._unscored = len(prompt) if options.prompt_logprobs else 0
        if self._unscored and self.num_top is not None:
            self._logprobs.append(TokenLogprob(prompt[0], None))

    @property
    def uncached(self) -> list[int]:
        """Tokens that the model must process before the next one can be sampled."""
        return self._window[self.num_cached :]

    @property
    def only_reads(self) -> bool:
        """Whether no token is generated: the prompt alone is scored."""
        return self._options.max_tokens == 0

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are still needed."""
        return self._unscored > 0

    def score_prompt(self, logits: Tensor) -> None:
        """Report the tokens that follow each of the next cached ones.

        Args:
            logits: [positions, vocabulary], for as many tokens of `uncached`.
        """
        first = self.num_cached + 1
        following = self._window[first : first + logits.shape[0]]
        self._logprobs += token_logprobs(logits[: len(following)], following, self.num_top or 0)
        self._unscored -= logits.shape[0]

    def end_prompt(self) -> Chunk:
        """The only chunk of a text without tokens."""
        return Chunk(self._index, "", 0, "length", self._take_logprobs())

    def advance(self, token: int, logits: Tensor | None = None) -> Chunk | None:
        """Append a token; returns newly final text, if any.

        Only the last chunk has a finish reason.

        Args:
            logits: [1, vocabulary], the unchanged ones of `token`, if they are to be reported.
        """
        if logits is not None:
            self._logprobs += token_logprobs(logits, [token], self.num_top or 0)
        self._num_tokens += 1
        self._window.append(token)
        if len(self._window) > self._context_length:
            # Cached keys contain their positions, so a shifted window must be processed again.
            # Dropping half a context at a time makes that rare.
            self._window = self._window[-max(1, self._context_length // 2) :]
            self.num_cached = 0
        return self._chunk(token)

    def _chunk(self, token: int) -> Chunk | None:
        stops, options = self._stops, self._options
        stopped, at_limit = token in self._stop_ids, self._num_tokens == options.max_tokens
        ended = stopped or self.sampler.complete
        text = ""
        if not stopped or options.include_stop:
            text = self._detokenizer.push(token)
            # vLLM, too, looks for stop strings only after min_tokens.
            text = text if self._num_tokens <= options.min_tokens else stops.push(text)
        if (ended or at_limit) and not stops.matched:
            text += stops.push(self._detokenizer.flush())
            text += stops.flush()
        if stops.matched or ended or at_limit:
            reason: FinishReason = "stop" if stops.matched or ended else "length"
            return self._reported(text, reason)
        return self._reported(text) if text else None

    def _reported(self, text: str, reason: FinishReason | None = None) -> Chunk:
        return Chunk(self._index, text, self._count_unreported(), reason, self._take_logprobs())

    def _take_logprobs(self) -> tuple[TokenLogprob, ...]:
        if not self._logprobs:
            return ()
        taken, self._logprobs = tuple(self._logprobs), []
        return taken

    def _count_unreported(self) -> int:
        count = self._num_tokens - self._num_reported
        self._num_reported = self._num_tokens
        return count


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

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """
        Args:
            include: whether the stream ends after the stop string, not before it.
        """
        self._stops = tuple(stops)
        self._include = include
        self._held = ""  # may be the beginning of a stop string
        self.matched = False

    def push(self, text: str) -> str:
        """The part of the stream that may be sent; sets `matched` at a stop string."""
        self._held += text
        matches = [
            (at, at + len(stop)) for stop in self._stops if (at := self._held.find(stop)) >= 0
        ]
        if matches:
            self.matched = True
            first, end = min(matches)
            sent, self._held = self._held[: end if self._include else first], ""
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
