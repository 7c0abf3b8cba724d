"""Long prompts: how much of them is tokenised before they are refused, and where."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from tests.support.serving.chat_model import CHAT_CONTEXT, export_chat_gpt
from tests.support.serving.models import CONTEXT, export_char_gpt, write_manifest
from tests.support.serving.servers import loaded
from trainyard_serving.concurrency import ComputingThreads
from trainyard_serving.errors import QueueFullError
from trainyard_serving.generate.engine import PromptError
from trainyard_serving.generate.prompts import PIECE, PromptEncoder

MEGABYTE = 900_000


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def get_vocab(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer(text, **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    export_char_gpt(directory)
    return AutoTokenizer.from_pretrained(directory)


def encoder(tokenizer: Any, context_length: int) -> tuple[PromptEncoder, Counting]:
    counting = Counting(tokenizer)
    return PromptEncoder(counting, context_length, len(tokenizer), unk_id=0), counting


def test_a_prompt_far_too_long_is_refused_after_a_piece_of_it(tokenizer: Any) -> None:
    encode, counting = encoder(tokenizer, CONTEXT)
    with pytest.raises(PromptError, match=f"more than {2 * CONTEXT} tokens") as error:
        encode.encode("a" * MEGABYTE, "prompt", add_special_tokens=True)
    assert error.value.code == "context_length_exceeded"
    assert counting.characters == PIECE


def test_what_is_tokenised_is_bounded_by_the_context(tokenizer: Any) -> None:
    context = 3 * PIECE
    encode, counting = encoder(tokenizer, context)
    with pytest.raises(PromptError, match="maximum context length") as error:
        encode.encode("a" * MEGABYTE, "messages", add_special_tokens=False)
    assert error.value.param == "messages"
    assert counting.characters == 2 * context + PIECE


def test_a_long_prompt_that_fits_is_encoded_whole(tokenizer: Any) -> None:
    prompt = "To be, or not to be" * 1000
    encode, counting = encoder(tokenizer, len(prompt))
    expected = tokenizer(prompt)["input_ids"]
    assert encode.encode(prompt, "prompt", add_special_tokens=True) == expected
    assert counting.characters == 2 * len(prompt)  # counted, then encoded


def test_one_token_too_many_is_counted_exactly(tokenizer: Any) -> None:
    encode, _ = encoder(tokenizer, 2 * PIECE)
    with pytest.raises(PromptError, match=f"has {2 * PIECE + 1} tokens"):
        encode.encode("a" * (2 * PIECE + 1), "prompt", add_special_tokens=True)


@pytest.mark.parametrize("name", ["distilbert-base-uncased", "gpt2", "qwen2"])
def test_real_tokenizers_have_about_as_many_tokens_in_pieces(name: str) -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip("the tokenizers are not beside this checkout (../shared/data)")
    real: Any = AutoTokenizer.from_pretrained(folder)
    texts = ["word " * 5000, "1234567890" * 3000, "aé日🚂" * 5000, " " * 20_000, "ab" * 20_000]
    for text in texts:
        whole = len(real(text, add_special_tokens=False, verbose=False)["input_ids"])
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        counts = [len(real(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
        assert sum(counts) <= 2 * max(whole, len(pieces))
        assert whole <= 2 * max(sum(counts), len(pieces))


def test_both_endpoints_refuse_it_with_openais_code(tmp_path: Path) -> None:
    export_chat_gpt(tmp_path)
    write_manifest(tmp_path)
    text = "a" * MEGABYTE
    with loaded(model=tmp_path) as client:
        bodies: dict[str, Any] = {
            "/v1/completions": {"prompt": ["a", text]},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
            "/tokenize": {"prompt": text},
        }
        for path, body in bodies.items():
            error = refused(client, path, body)
            assert error["code"] == "context_length_exceeded"
            assert error["message"].startswith(f"the prompt has more than {2 * CHAT_CONTEXT}")


def refused(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


async def test_few_compute_at_a_time_and_few_wait() -> None:
    threads = ComputingThreads(num_threads=1, max_queue=1, name="test")
    started, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        started.set()
        go_on.wait()
        return "done"

    first = asyncio.create_task(threads.run(compute))
    await asyncio.to_thread(started.wait)
    second = asyncio.create_task(threads.run(compute))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await threads.run(compute)
    first.cancel()  # its thread goes on: there is room only once it has ended
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    third = asyncio.create_task(threads.run(compute))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await threads.run(compute)
    go_on.set()
    assert await third == "done"
    threads.stop()
