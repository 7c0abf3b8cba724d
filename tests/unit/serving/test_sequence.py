"""Streams of text: no partial characters, and exact ends at stop strings."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trainyard_serving.generate.sequence import REPLACEMENT, Detokenizer, StopMatcher


def byte_tokenizer() -> Tokenizer:
    """One token per byte: every non-ASCII character arrives in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = byte_tokenizer()


def stream(prompt: str, completion: str) -> list[str]:
    detokenizer = Detokenizer(BYTES.decode, BYTES.encode(prompt).ids)
    pieces = [detokenizer.push(token) for token in BYTES.encode(completion).ids]
    return [*pieces, detokenizer.flush()]


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_pieces_join_to_the_text(prompt: str, completion: str) -> None:
    assert "".join(stream(prompt, completion)) == completion


def test_no_piece_has_part_of_a_character() -> None:
    pieces = stream("à la ", "été 日本 🚂!")
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "🚂" in pieces


def test_a_character_cut_off_at_the_end_is_shown_as_broken() -> None:
    detokenizer = Detokenizer(BYTES.decode, [])
    first = BYTES.encode("日").ids[0]
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == REPLACEMENT


@settings(deadline=None)
@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 5)),
)
def test_stop_strings_cut_however_the_text_is_split(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher, shown, rest = StopMatcher(stops), "", text
    for size in [*sizes, len(text)]:
        if matcher.matched:
            break
        shown += matcher.push(rest[:size])
        rest = rest[size:]
        # The earliest stop string may depend on text still to come only if none is complete.
        assert not any(stop in shown for stop in stops)
    if not matcher.matched:
        shown += matcher.flush()
    assert matcher.matched == any(stop in text for stop in stops)
    if matcher.matched:
        assert any(text.startswith(shown + stop) for stop in stops)
    else:
        assert shown == text


def test_text_is_held_back_only_while_a_stop_string_may_follow() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("two") == "\ntwo"
    assert matcher.push("\n\nthree") == ""
    assert matcher.matched
