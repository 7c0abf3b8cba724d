"""Several choices of a prompt, penalties, filters, bias, and what ends a text, over real HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving.models import ALPHABET, export_char_gpt, write_manifest
from tests.support.serving.servers import loaded

EOS = 1 + ALPHABET.index("e")  # which ends a text, although it is a character


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose model ends its texts with an e."""
    directory: Path = tmp_path_factory.mktemp("ending")
    export_char_gpt(directory, eos_token_id=EOS)
    write_manifest(directory)
    with loaded(model=directory, max_prompts=24) as client:
        yield client


def token(char: str) -> int:
    return 1 + ALPHABET.index(char)


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    start = {"prompt": "To be", "seed": 1, "max_tokens": 12}
    response = client.post("/v1/completions", json=start | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def texts(client: httpx.Client, **body: Any) -> list[str]:
    choices = complete(client, **body)["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


def text(client: httpx.Client, **body: Any) -> str:
    (only,) = texts(client, **body)
    return only


def test_choices_have_seeds_of_their_own_and_are_repeated(client: httpx.Client) -> None:
    prompts = ["To be", "or not"]
    got = texts(client, prompt=prompts, n=3)
    assert got == [
        text(client, prompt=prompt, seed=seed) for prompt in prompts for seed in (1, 2, 3)
    ]
    assert len(set(got)) == 6
    body = complete(client, prompt=prompts, n=3, echo=True)
    assert [choice["text"] for choice in body["choices"]] == [
        prompts[number // 3] + one for number, one in enumerate(got)
    ]
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 72, "total_tokens": 83}


def test_a_stream_has_all_choices(client: httpx.Client) -> None:
    body = {"prompt": ["To be", "or not"], "seed": 1, "max_tokens": 12, "n": 2, "stream": True}
    lines = client.post("/v1/completions", json=body).text.split("\n\n")[:-2]
    got = [""] * 4
    for line in lines:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        got[choice["index"]] += choice["text"]
    assert got == texts(client, prompt=["To be", "or not"], n=2)


def test_the_best_have_the_highest_logprob_per_token(client: httpx.Client) -> None:
    def mean(choice: dict[str, Any]) -> float:
        logprobs: list[float] = choice["logprobs"]["token_logprobs"]
        return sum(logprobs) / len(logprobs)

    prompts = ["To be", "or not"]
    all_choices = complete(client, prompt=prompts, n=5, logprobs=0)["choices"]
    best = [
        one["text"]
        for first in (0, 5)
        for one in sorted(all_choices[first : first + 5], key=mean, reverse=True)[:2]
    ]
    body = complete(client, prompt=prompts, n=2, best_of=5)
    assert [choice["text"] for choice in body["choices"]] == best
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 120  # of all candidates


def test_twenty_prompts_are_one_request(client: httpx.Client) -> None:
    assert len(texts(client, prompt=["a"] * 20, max_tokens=1)) == 20


def test_filters_leave_the_most_likely_token(client: httpx.Client) -> None:
    greedy = text(client, temperature=0)
    for filters in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert text(client, temperature=2, **filters) == greedy
    assert text(client, temperature=2, top_k=-1, min_p=0, top_p=1) == text(client, temperature=2)
    assert text(client, temperature=2, top_k=3) != greedy


def test_penalties_prevent_repetition(client: httpx.Client) -> None:
    """With a bias that makes one character certain, it is repeated until it is penalised."""
    bias = {str(token("x")): 20.0}
    body: dict[str, Any] = {"temperature": 0, "logit_bias": bias, "max_tokens": 20}
    assert text(client, **body) == "x" * 20
    penalised = text(client, frequency_penalty=2, **body)
    assert 1 < len(penalised) - len(penalised.replace("x", "")) < 20
    assert text(client, presence_penalty=2, **body) == "x" * 20  # once only: not enough
    # The prompt's characters are penalised by repetition_penalty only.
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert text(client, prompt="xxx", **penalty, **body)[0] == "x"
    assert "x" not in text(client, prompt="xxx", repetition_penalty=100, **body)
    assert text(client, prompt="a", repetition_penalty=100, **body).count("x") == 1


def test_a_bias_forbids_and_forces(client: httpx.Client) -> None:
    plain = text(client, temperature=0)
    forbidden = text(client, temperature=0, logit_bias={str(token(plain[0])): -100})
    assert plain[0] not in forbidden
    assert text(client, logit_bias={str(token("é")): 100}) == "é" * 12


def test_the_end_can_be_ignored_put_off_or_moved(ending: httpx.Client) -> None:
    hurry: dict[str, Any] = {"logit_bias": {str(EOS): 100}, "temperature": 0}
    (choice,) = complete(ending, **hurry)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert text(ending, ignore_eos=True, **hurry) == "e" * 12
    late = complete(ending, min_tokens=5, **hurry)
    assert len(late["choices"][0]["text"]) == 5
    assert late["choices"][0]["finish_reason"] == "stop"
    assert "e" not in late["choices"][0]["text"]
    x: dict[str, Any] = {"logit_bias": {str(token("x")): 100}}
    (stopped,) = complete(ending, stop_token_ids=[token("x")], **x)["choices"]
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop")
    assert len(text(ending, stop_token_ids=[token("x")], min_tokens=3, **x)) == 3
    shown = text(ending, stop_token_ids=[token("x")], include_stop_str_in_output=True, **x)
    assert shown == "x"


def test_stop_strings_may_be_included_and_wait_for_min_tokens(client: httpx.Client) -> None:
    bias: dict[str, Any] = {"logit_bias": {str(token("x")): 100}}
    assert text(client, stop="xx", **bias) == ""
    assert text(client, stop="xx", include_stop_str_in_output=True, **bias) == "xx"
    assert text(client, stop="xx", min_tokens=4, **bias) == "xxxx"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"n": 0}, "n", "greater"),
        ({"n": 25}, "n", "at most 24 texts in one request (got 25)"),
        ({"n": 13, "prompt": ["a", "b"]}, "n", "got 26"),
        ({"best_of": 25}, "best_of", "at most 24 texts"),
        ({"n": 3, "best_of": 2}, "best_of", "below n"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"top_k": -2}, "top_k", "greater"),
        ({"min_p": 1.5}, "min_p", "less"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less"),
        ({"presence_penalty": -3}, "presence_penalty", "greater"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "less"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "pattern"),
        ({"logit_bias": {"99": 1}}, "logit_bias", "no token 99"),
        ({"stop_token_ids": [99]}, "stop_token_ids", "no token 99"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "greater"),
        ({"min_tokens": -1}, "min_tokens", "greater"),
        ({"min_tokens": 17}, "min_tokens", "at most 16"),  # the default of max_tokens
        ({"skip_special_tokens": 1}, "skip_special_tokens", "boolean"),
    ],
)
def test_what_is_wrong_is_named(
    ending: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    response = ending.post("/v1/completions", json={"prompt": "a"} | change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_too_many_log_probabilities_are_refused_by_the_field_that_was_sent(tmp_path: Path) -> None:
    export_char_gpt(tmp_path)
    write_manifest(tmp_path)
    with loaded(model=tmp_path, max_prompts=128, max_tokens=4096) as client:
        for field, body in (
            ("best_of", {"best_of": 128}),
            ("logprobs", {"best_of": 128, "logprobs": 0}),
            ("logprobs", {"n": 128, "logprobs": 1}),
        ):
            start = {"prompt": "To be", "max_tokens": 4096}
            error = client.post("/v1/completions", json=start | body).json()["error"]
            assert error["param"] == field
            assert error["message"].startswith(f"{field}: it takes up to ")
            assert ("logprobs" in error["message"].split("send")[1]) == (field == "logprobs")
