"""What agents send: developer messages, names, tools and their calls in the history."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving.chat_model import TEMPLATE, chatml, export_chat_gpt
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded

# Writes tools and their calls as the alphabet of the model allows.
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}{{ 'Tool ' + t.function.name }}"
    "{{ (t.function.parameters.note or '') + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + (', ' + m.name if m.name else '') }}"
    "{{ '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments.where }}"
    "{% endfor %}{% if m.role == 'tool' %}{{ ' end' }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"where": "Rome"}'},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like outside",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
        "strict": True,
    },
}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Rome?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model whose template knows nothing of tools."""
    yield from served(tmp_path_factory.mktemp("plain"), TEMPLATE)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model whose template writes names, tools and calls."""
    yield from served(tmp_path_factory.mktemp("agent"), TOOL_TEMPLATE)


def served(directory: Path, template: str) -> Iterator[httpx.Client]:
    export_chat_gpt(directory, template=template)
    write_manifest(directory)
    with loaded(model=directory) as client:
        yield client


def prompt(client: httpx.Client, messages: list[dict[str, Any]], **body: Any) -> str:
    """The text that the model reads, and that a chat with these messages is answered from."""
    asked = {"messages": messages} | body
    tokens = client.post("/tokenize", json=asked)
    assert tokens.status_code == 200, tokens.text
    answer = client.post("/v1/chat/completions", json=asked | {"max_tokens": 1})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] == tokens.json()["count"]
    text = client.post("/detokenize", json={"tokens": tokens.json()["tokens"]}).json()["prompt"]
    return str(text)


def refusal(client: httpx.Client, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "Hi"}]} | body
    response = client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert "\n" not in error["message"]
    return error


def test_a_developer_message_is_a_system_message(plain: httpx.Client) -> None:
    messages = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    assert prompt(plain, messages) == chatml(("system", "Be kind"), ("user", "Hi"))


def test_what_an_sdk_returns_and_hints_for_caches_are_accepted(plain: httpx.Client) -> None:
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    empty: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [part]},
        {"role": "assistant", "content": None, "tool_calls": [], **empty},
        {"role": "user", "content": "Go on", "name": "Ann"},
    ]
    assert prompt(plain, messages) == chatml(("user", "Hi"), ("assistant", ""), ("user", "Go on"))


def test_a_template_that_knows_them_gets_names_tools_and_calls(agent: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be kind", "name": "Ann"}, *HISTORY]
    assert prompt(agent, messages, tools=[TOOL]) == (
        "Tool weather\n<|im_start|>system, Ann\nBe kind<|im_end|>\n"
        "<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\nweather Rome<|im_end|>\n"
        "<|im_start|>tool\nSunny end<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tool_choice_none_leaves_the_tools_out(agent: httpx.Client) -> None:
    asked = {"messages": HISTORY[:1], "max_tokens": 1}
    choices: list[dict[str, Any]] = [
        {},
        {"tools": []},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "none"},
    ]
    answers = [agent.post("/v1/chat/completions", json=asked | choice) for choice in choices]
    none, empty, tools, auto, off = (each.json()["usage"]["prompt_tokens"] for each in answers)
    assert none == empty == off < tools == auto


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [TOOL]}, "tools", "tools: this model's chat template has none"),
        ({"messages": HISTORY[:2]}, "messages", "tool_calls: this model's chat template"),
        ({"messages": [HISTORY[0], HISTORY[2]]}, "messages", "messages with role tool"),
    ],
)
def test_a_template_without_tools_refuses_them(
    plain: httpx.Client, body: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(plain, **body)
    assert error["code"] == "tools_not_supported"
    assert error["param"] == param
    assert words in error["message"]


def call(**changes: Any) -> list[dict[str, Any]]:
    function = CALL["function"] | changes  # type: ignore[operator]
    return [{"role": "assistant", "tool_calls": [CALL | {"function": function}]}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": call(arguments="nonsense")}, "must be a JSON object"),
        ({"messages": call(arguments="[1]")}, "must be a JSON object"),
        ({"messages": call(arguments="[" * 100_000)}, "must be a JSON object"),
        ({"messages": call(arguments={"where": "Rome"})}, "arguments"),
        ({"messages": call(name="")}, "name"),
        ({"messages": [HISTORY[0] | {"tool_calls": [CALL]}]}, "messages of the assistant"),
        ({"messages": [HISTORY[0] | {"tool_call_id": "1"}]}, "messages with role tool"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be"),
        ({"messages": [{"role": "assistant", "refusal": "No"}]}, "refusal is not supported"),
        ({"tools": [{"type": "function"}]}, "function"),
        ({"tools": [TOOL | {"type": "web_search"}]}, "type"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice is not supported"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "a"}}},
            "tool_choice is not supported",
        ),
        ({"tools": [TOOL | {"function": {"name": "a", "unheard_of": 1}}]}, "unheard_of"),
    ],
)
def test_malformed_tools_and_calls_are_a_400_that_says_why(
    agent: httpx.Client, body: dict[str, Any], words: str
) -> None:
    assert words in refusal(agent, **body)["message"]


@pytest.mark.parametrize("depth", [90, 101, 300, 900])
def test_deep_parameters_and_schemas_never_make_the_server_fail(
    agent: httpx.Client, depth: int
) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    function = {"name": "a", "parameters": "NESTED"}
    tools = {"tools": [{"type": "function", "function": function}]}
    schema = {"name": "a", "schema": "NESTED"}
    form = {"response_format": {"type": "json_schema", "json_schema": schema}}
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    for field in (tools, form):
        body = json.dumps(asked | field).replace('"NESTED"', nested)
        headers = {"content-type": "application/json"}
        response = agent.post("/v1/chat/completions", content=body, headers=headers)
        expected = 200 if depth == 90 and field is tools else 400
        assert response.status_code == expected, response.text
        if depth > 100:
            assert "nested more than 100 levels" in response.json()["error"]["message"]


def test_a_lone_surrogate_in_a_tool_is_a_400(agent: httpx.Client) -> None:
    body = (
        b'{"messages": [{"role": "user", "content": "Hi"}], "tools":'
        b' [{"type": "function", "function": {"name": "a", "parameters": {"note": "\\ud800"}}}]}'
    )
    headers = {"content-type": "application/json"}
    response = agent.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert "surrogates not allowed" in response.json()["error"]["message"]
