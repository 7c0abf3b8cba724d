"""One prompt's completion under way: what the model reads next, and the text as it gets final."""

from torch import Tensor

from trainyard_serving.generate.completion import Chunk, Sampling
from trainyard_serving.generate.sampling import Sampler
from trainyard_serving.generate.text_stream import Detokenizer, StopMatcher


class Sequence:
    """Knows nothing of other sequences: what is computed beside it is not its business.

    Attributes:
        num_read: tokens of the window that its key-value cache holds; 0 asks for a new cache.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: Sampling,
        sampler: Sampler,
        detokenizer: Detokenizer,
        eos_ids: frozenset[int],
        context_length: int,
    ) -> None:
        self.num_read = 0
        self._window = list(prompt)  # what the model attends to
        self._index = index
        self._max_tokens = sampling.max_tokens
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopMatcher(sampling.stop)
        self._eos_ids = eos_ids
        self._context_length = context_length
        self._num_tokens = 0
        self._num_told = 0  # tokens in the chunks so far

    @property
    def unread(self) -> list[int]:
        """Tokens that the model has to read before the next one can be picked."""
        return self._window[self.num_read :]

    def take(self, logits: Tensor) -> Chunk | None:
        """Pick the next token from `logits` [vocabulary]; the text that is final by now, if any.

        The last chunk, and only it, has a finish reason.
        """
        token = self._sampler.pick(logits)
        self._num_tokens += 1
        self._window.append(token)
        if len(self._window) > self._context_length:
            # Cached keys carry their positions, so a slid window has to be read anew; half a
            # context at a time keeps that rare.
            self._window = self._window[-max(1, self._context_length // 2) :]
            self.num_read = 0
        return self._chunk(token)

    def _chunk(self, token: int) -> Chunk | None:
        stops = self._stops
        ended, full = token in self._eos_ids, self._num_tokens == self._max_tokens
        text = "" if ended else stops.push(self._detokenizer.push(token))
        if (ended or full) and not stops.hit:
            text += stops.push(self._detokenizer.flush())
            text += stops.flush()
        if stops.hit or ended or full:
            return Chunk(
                self._index, text, self._fresh(), "stop" if stops.hit or ended else "length"
            )
        return Chunk(self._index, text, self._fresh()) if text else None

    def _fresh(self) -> int:
        """Tokens since the last chunk."""
        fresh, self._num_told = self._num_tokens - self._num_told, self._num_tokens
        return fresh
