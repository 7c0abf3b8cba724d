"""The texts and bytes of real tokenizers' tokens add up to the text."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.serving.fixtures import STORIES
from trainyard_serving.generate.engine import TokenLogprob
from trainyard_serving.generate.openai_responses import CompletionJson, GeneratedText
from trainyard_serving.generate.vocabulary import Vocabulary

SHARED = STORIES.parents[1]
TEXTS = ["Once upon a time", "  été 日本 🚂!", "a\n\nb  c", "naïve\tcafé"]

pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared/data is not beside this checkout"
)


def tokenizer_of(name: str) -> Any:
    auto: Any = AutoTokenizer
    return auto.from_pretrained(STORIES if name == "llama" else SHARED / "tokenizers" / name)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama"])
def test_bytes_add_up_and_offsets_are_of_characters(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    ids = tokenizer(text)["input_ids"]
    plain = [token for token in ids if not vocabulary.is_special(token)]
    first, *rest = plain
    content = vocabulary[first].initial + b"".join(vocabulary[token].content for token in rest)
    assert content.decode() == tokenizer.decode(ids, skip_special_tokens=True)

    logprobs = [TokenLogprob(token, -1.0, ((token, -1.0),)) for token in ids]
    echo = CompletionJson("id", "model", len(ids), 1, vocabulary, [text])
    (choice,) = echo.response([GeneratedText("", "length", 0, logprobs)])["choices"]
    offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    assert offsets == sorted(offsets)
    for offset, shown, token in zip(offsets, tokens, ids, strict=True):
        if not shown.startswith("bytes:") and not vocabulary.is_special(token):
            begins = text[offset:] if offset else " " + text
            assert begins.startswith(shown) or text.startswith(shown)


def test_parts_of_a_character_are_shown_by_their_bytes() -> None:
    for name, parts in (("gpt2", [r"bytes:\xe6\x97", r"bytes:\xa5"]), ("llama", [])):
        tokenizer = tokenizer_of(name)
        vocabulary = Vocabulary(tokenizer, len(tokenizer))
        ids = tokenizer("日", add_special_tokens=False)["input_ids"]
        shown = [vocabulary[token].text for token in ids]
        if parts:
            assert shown == parts
        content = b"".join(vocabulary[token].content for token in ids)
        assert content.decode().strip() == "日"
        assert len({one for one in shown if one.startswith("bytes:")}) > 1
    assert vocabulary[10**6].text == "token_id:1000000"
