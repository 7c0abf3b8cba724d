"""Tokens to text, piece by piece: whole characters only, and never past a stop string."""

from collections.abc import Callable, Sequence

# U+FFFD at the end of decoded text means that a character's bytes are not all there yet.
REPLACEMENT = "\ufffd"
# Tokens of the prompt decoded along with the first new ones: spacing depends on neighbours.
CONTEXT_TOKENS = 5


class Detokenizer:
    """Decodes a growing list of token ids into text that never has to be taken back."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._sent = len(self._ids)  # ids whose text is out; the ones before give context

    def push(self, token: int) -> str:
        """Text that is final now that `token` came; "" while a character is incomplete."""
        self._ids.append(token)
        text = self._pending()
        if text.endswith(REPLACEMENT):
            return ""
        self._ids = self._ids[self._sent :] if text else self._ids
        self._sent = len(self._ids) if text else self._sent
        return text

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        return self._pending()

    def _pending(self) -> str:
        before = self._decode(self._ids[: self._sent])
        return self._decode(self._ids)[len(before) :]


class StopMatcher:
    """Cuts a text stream before the first stop string, however the pieces split it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # could be the beginning of a stop string
        self.hit = False

    def push(self, text: str) -> str:
        """The part of the stream that can be shown; sets `hit` when a stop string came."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once the stream has ended without a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
