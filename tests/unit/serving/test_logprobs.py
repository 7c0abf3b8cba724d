"""Log-probabilities are those of transformers' logits: of prompts and texts, alone and together."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.serving.chat_model import export_chat_gpt
from tests.support.serving.models import CONTEXT, write_manifest
from tests.support.serving.servers import loaded
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_serving.generate import openai_responses

PROMPTS = ["To be", "or not to be, that is the", "été"]


class Reference:
    """The same model in transformers."""

    def __init__(self, directory: Path) -> None:
        auto: Any = AutoModelForCausalLM
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model = auto.from_pretrained(directory).train(False)

    @torch.inference_mode()
    def logprobs(self, text: str) -> torch.Tensor:
        """[tokens - 1, vocabulary]: of each token but the first."""
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        logprobs: torch.Tensor = self._model(ids).logits[0].float().log_softmax(-1)
        return logprobs[:-1]

    def check(self, text: str, logprobs: dict[str, Any], num_top: int) -> None:
        """`logprobs` is the object of a choice that echoes its prompt."""
        ids = self.tokenizer(text)["input_ids"]
        expected = self.logprobs(text)
        own = expected.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert logprobs["token_logprobs"] == [None, *(pytest.approx(x, abs=1e-4) for x in own)]
        assert logprobs["top_logprobs"][0] is None
        best = expected.topk(num_top).values.tolist()
        for shown, values, one in zip(logprobs["top_logprobs"][1:], best, own, strict=True):
            wanted = sorted({*values} | {one}, reverse=True)
            assert sorted(shown.values(), reverse=True) == pytest.approx(
                wanted if one < min(values) - 1e-6 else values, abs=1e-4
            )


@pytest.fixture(scope="module")
def reference(run_dir: Path) -> Reference:
    return Reference(run_dir / MODELS / step_name(500))


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"seed": 1, "max_tokens": 6} | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize("temperature", [0, 1.7])
def test_they_are_transformers_alone_and_in_a_batch(
    client: httpx.Client, reference: Reference, temperature: float
) -> None:
    body = {"echo": True, "logprobs": 3, "temperature": temperature, "top_k": 5}
    together = complete(client, prompt=PROMPTS, **body)["choices"]
    for prompt, choice in zip(PROMPTS, together, strict=True):
        text, logprobs = choice["text"], choice["logprobs"]
        assert "".join(logprobs["tokens"]) == text
        assert len(text) == len(prompt) + 6
        assert logprobs["text_offset"] == list(range(len(text)))
        reference.check(text, logprobs, 3)
        (alone,) = complete(client, prompt=prompt, **body)["choices"]
        assert alone["text"] == text
        reference.check(text, alone["logprobs"], 3)


def test_a_long_prompt_is_scored_in_pieces(
    client: httpx.Client, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainyard_serving.generate import batch, logprobs

    monkeypatch.setattr(batch, "SCORED_TOKENS", 5)
    monkeypatch.setattr(logprobs, "POSITIONS", 2)
    prompt = ("or not to be, that is " * 3)[:CONTEXT]
    body = complete(client, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert body["usage"]["completion_tokens"] == 0
    reference.check(prompt, choice["logprobs"], 1)


def test_zero_of_the_most_likely_is_not_no_logprobs(
    client: httpx.Client, reference: Reference
) -> None:
    (choice,) = complete(client, prompt="To be", logprobs=0, echo=True)["choices"]
    shown = choice["logprobs"]
    assert [list(top.values()) for top in shown["top_logprobs"][1:]] == [
        [one] for one in shown["token_logprobs"][1:]
    ]
    (without,) = complete(client, prompt="To be")["choices"]
    assert without["logprobs"] is None


def test_without_echo_only_the_texts_tokens_are_reported(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt="To be", logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(logprobs["token_logprobs"]) == 6
    assert None not in logprobs["token_logprobs"]
    assert logprobs["text_offset"] == list(range(6))


def test_token_ids_are_the_same_prompt(client: httpx.Client, reference: Reference) -> None:
    ids = [reference.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    body: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 3}
    texts = complete(client, prompt=PROMPTS, **body)
    tokens = complete(client, prompt=ids, **body)
    assert tokens["choices"] == texts["choices"]
    assert tokens["usage"] == texts["usage"]
    (one,) = complete(client, prompt=ids[0], **body)["choices"]
    assert one["text"] == texts["choices"][0]["text"]


def streamed(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    parts = client.post(path, json=body | {"stream": True}).text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    events = [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
    return [choice for event in events for choice in event["choices"]]


def test_a_stream_has_the_same_ones(client: httpx.Client) -> None:
    body: dict[str, Any] = {
        "prompt": PROMPTS,
        "echo": True,
        "logprobs": 2,
        "seed": 1,
        "max_tokens": 6,
    }
    pieces = streamed(client, "/v1/completions", **body)
    for index, whole in enumerate(complete(client, **body)["choices"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in own) == whole["text"]
        for key, values in whole["logprobs"].items():
            assert [one for piece in own for one in piece["logprobs"][key]] == values
        assert len(own) > 3


def test_penalties_and_bias_do_not_change_what_is_reported(
    client: httpx.Client, reference: Reference
) -> None:
    token = reference.tokenizer("z")["input_ids"][0]
    (choice,) = complete(
        client,
        prompt="To be",
        echo=True,
        logprobs=2,
        logit_bias={str(token): 100},
        repetition_penalty=1.3,
        frequency_penalty=1,
    )["choices"]
    assert choice["text"] == "To bezzzzzz"
    reference.check(choice["text"], choice["logprobs"], 2)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "at least one"),
        ({"prompt": [[1], "a"]}, "prompt", "list of strings or of token ids"),
        ({"prompt": [[1], [True]]}, "prompt", "token ids"),
        ({"prompt": [-1]}, "prompt", "token ids"),
        ({"prompt": [1.5]}, "prompt", "token ids"),
        ({"prompt": [10**6]}, "prompt", "no token 1000000: its last one is"),
        ({"prompt": [79]}, "prompt", "no token 79"),  # padding of the model's vocabulary
        ({"prompt": [1] * (CONTEXT + 1)}, "prompt", "maximum context length is 32 tokens"),
        ({"logprobs": -1}, "logprobs", "greater than or equal to 0"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"max_tokens": 0}, "max_tokens", "needs echo"),
        ({"logprobs": 20, "max_tokens": 4096, "prompt": ["a"] * 8}, "logprobs", "262144 are"),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    response = client.post("/v1/completions", json={"prompt": "a"} | change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize("chat", [False, True])
def test_they_are_encoded_in_pieces_and_not_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    """One call of json.dumps lets nothing else run, however many there are."""
    pieces: list[tuple[str, bytes]] = []
    real = openai_responses._json

    def recorded(value: Any) -> bytes:
        pieces.append((threading.current_thread().name, real(value)))
        return pieces[-1][1]

    monkeypatch.setattr(openai_responses, "_json", recorded)
    body: dict[str, Any] = {"max_tokens": 500, "ignore_eos": True, "n": 2}
    if chat:
        path = "/v1/chat/completions"
        messages = [{"role": "user", "content": "a"}]
        body |= {"messages": messages, "logprobs": True, "top_logprobs": 5}
    else:
        path = "/v1/completions"
        body |= {"prompt": "a", "logprobs": 5}
    export_chat_gpt(tmp_path)
    write_manifest(tmp_path)
    with loaded(model=tmp_path) as client:
        response = client.post(path, json=body)
    content = response.json()
    assert len(content["choices"]) == 2, response.text
    assert response.content == real(content)
    assert response.headers["content-type"] == "application/json"
    assert all(thread.startswith("AnyIO worker") for thread, _ in pieces)
    assert max(len(piece) for _, piece in pieces) < len(response.content) / 8
