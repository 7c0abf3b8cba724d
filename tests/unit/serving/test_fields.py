"""The table of fields in the guide says what the code does, and unknown fields are refused."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from trainyard_serving.generate.openai_api import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from trainyard_serving.generate.openai_request import HARMLESS

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "serving-generate.md"
ROUTES: list[type[GenerationRequest]] = [CompletionRequest, ChatRequest]


def table() -> dict[str, list[str]]:
    """For each field, what the guide says of completions and of chat."""
    rows: dict[str, list[str]] = {}
    for line in GUIDE.read_text().partition("| field |")[2].splitlines():
        if line.startswith("| `"):
            fields, *routes, _ = [cell.strip() for cell in line.strip("|").split("|")]
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", fields), routes)
    return rows


def treatment(route: type[GenerationRequest], field: str) -> str:
    """What the code does with a field, in the table's words."""
    if field in route.model_fields:
        return "yes"
    if field in HARMLESS:
        return "no effect"
    return "default only" if field in route.harmless else "refused"


def test_the_guides_table_is_what_the_code_does() -> None:
    told = table()
    assert told == {field: [treatment(route, field) for route in ROUTES] for field in told}
    known = {name for route in ROUTES for name in (*route.model_fields, *HARMLESS, *route.harmless)}
    assert known <= told.keys()


REFUSED: dict[str, Any] = {
    "unheard_of": 1,
    "guided_json": {"type": "object"},
    "structured_outputs": {"choice": ["a"]},
    "prompt_logprobs": 0,
    "chat_template_kwargs": {"enable_thinking": False},
    "bad_words": ["a"],
    "suffix": "end",
    "use_beam_search": True,
    "length_penalty": 2.0,
    "priority": 5,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_refused_by_name(
    client: httpx.Client, path: str, field: str
) -> None:
    start: dict[str, Any] = {"prompt": "a"}
    if "chat" in path:
        start = {"messages": [{"role": "user", "content": "a"}]}
    response = client.post(path, json=start | {field: REFUSED[field]})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": f"{field} is not supported: leave it out",
        "type": "invalid_request_error",
        "param": field,
        "code": "unsupported_parameter",
    }


def test_an_option_of_streams_that_is_not_supported_is_refused(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "a", "stream": True, "stream_options": options}
    error = client.post("/v1/completions", json=body).json()["error"]
    assert error["param"] == "stream_options"
    assert "stream_options.continuous_usage_stats" in error["message"]


def test_values_without_effect_are_accepted(client: httpx.Client) -> None:
    body: dict[str, Any] = dict.fromkeys([*HARMLESS, *REFUSED, *CompletionRequest.model_fields])
    for harmless in (
        dict.fromkeys(HARMLESS, "anything"),
        {field: values[0] for field, values in CompletionRequest.harmless.items()},
        {},
    ):
        asked = body | harmless | {"prompt": "a", "seed": 1, "max_tokens": 3}
        response = client.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
