"""OpenAI's own client, unchanged, against both endpoints."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import patience
from tests.support.serving.chat_model import export_chat_gpt
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded

KEY = "sk-right"


@pytest.fixture(scope="module")
def ai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    directory: Path = tmp_path_factory.mktemp("chat")
    export_chat_gpt(directory)
    write_manifest(directory, run="chat")
    with loaded(model=directory, api_key=KEY) as client:
        url = str(client.base_url.join("/v1"))
        with openai.OpenAI(
            base_url=url, api_key=KEY, max_retries=0, timeout=patience.SECONDS
        ) as ai:
            yield ai


def test_models(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list().data
    assert model.id == "chat"
    assert ai.models.retrieve("chat") == model


def test_completions_with_and_without_streaming(ai: openai.OpenAI) -> None:
    whole = ai.completions.create(model="chat", prompt="To be", max_tokens=12, seed=1)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    with ai.completions.create(
        model="chat", prompt="To be", max_tokens=12, seed=1, stream=True
    ) as stream:
        pieces = [piece.choices[0] for piece in stream]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason == "length"


def test_chat_with_and_without_streaming(ai: openai.OpenAI) -> None:
    whole = ai.chat.completions.create(
        model="chat",
        messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
        max_completion_tokens=12,
        seed=1,
    )
    with ai.chat.completions.create(
        model="chat",
        messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
        max_completion_tokens=12,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        first, *pieces, last = list(stream)
    assert first.choices[0].delta.role == "assistant"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert last.usage == whole.usage


def test_a_conversation_continues_with_the_clients_message_object(ai: openai.OpenAI) -> None:
    first = ai.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, seed=1
    )
    message = first.choices[0].message
    second = ai.chat.completions.create(
        model="chat",
        messages=[
            {"role": "user", "content": "Hi"},
            message,  # type: ignore[list-item]  # the client takes its own answers
            {"role": "user", "content": "And?"},
        ],
        max_tokens=4,
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.total_tokens


def test_choices_and_logprobs_have_the_clients_types(ai: openai.OpenAI) -> None:
    texts = ai.completions.create(
        model="chat", prompt=["To be", "or"], n=2, logprobs=2, max_tokens=5, seed=1, echo=True
    )
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    for text in texts.choices:
        assert text.logprobs is not None
        assert text.logprobs.tokens is not None
        assert "".join(text.logprobs.tokens) == text.text
    with ai.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "Hi"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        max_tokens=12,
        seed=1,
        stream=True,
    ) as stream:
        pieces = [piece.choices[0] for piece in stream]
    whole = ai.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": "Hi"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        max_tokens=12,
        seed=1,
    )
    assert whole.choices[0].message.content != whole.choices[1].message.content
    for choice in whole.choices:
        own = [piece for piece in pieces if piece.index == choice.index]
        assert own[0].delta.role == "assistant"
        content = "".join(piece.delta.content or "" for piece in own)
        assert content == choice.message.content
        assert choice.logprobs is not None
        told = choice.logprobs.content or []
        assert [token.model_dump() for piece in own for token in _logprobs(piece)] == [
            token.model_dump() for token in told
        ]
        assert all(len(token.top_logprobs) == 3 for token in told)
        sent = b"".join(bytes(token.bytes or []) for token in told if token.token[:2] != "<|")
        assert sent.decode() == content


def _logprobs(piece: Any) -> list[Any]:
    return piece.logprobs.content if piece.logprobs else []


def test_a_prompt_that_is_too_long_has_openais_code(ai: openai.OpenAI) -> None:
    """LiteLLM recognises the words (read in litellm 1.110's exception_mapping_utils)."""
    with pytest.raises(openai.BadRequestError) as text:
        ai.completions.create(model="chat", prompt="a" * 200)
    with pytest.raises(openai.BadRequestError) as chat:
        ai.chat.completions.create(model="chat", messages=[{"role": "user", "content": "a" * 200}])
    for refused in (text.value, chat.value):
        assert refused.code == "context_length_exceeded"
        assert "this model's maximum context length is 128 tokens" in refused.message


def test_errors_become_the_clients_exceptions(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ai.completions.create(model="chat", prompt="a", temperature=3)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here"):
        ai.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        ai.with_options(api_key="sk-wrong").models.list()


def test_concurrent_requests_get_the_text_of_their_seed(ai: openai.OpenAI) -> None:
    def streamed(seed: int) -> str:
        prompt = "To be, or not to be"[: 3 * seed]
        with ai.completions.create(
            model="chat", prompt=prompt, max_tokens=30, seed=seed, stream=True
        ) as stream:
            return "".join(piece.choices[0].text for piece in stream)

    alone = [streamed(seed) for seed in range(1, 5)]
    with ThreadPoolExecutor(4) as at_once:
        assert list(at_once.map(streamed, range(1, 5))) == alone
    assert len(set(alone)) == 4
