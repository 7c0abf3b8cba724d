"""response_format: whatever a model prefers, its answer is JSON of the schema."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.support.serving.chat_model import TEMPLATE
from tests.support.serving.completions import text_of, write
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded
from trainyard_serving.generate.engine import PromptError
from trainyard_serving.generate.grammar import JSON_CHARACTERS, MAX_SCHEMA_BYTES
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.generate.openai_api import ChatRequest
from trainyard_serving.generate.sglang_engine import sglang_request
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_trainer.data.tokenizers import CharTokenizer

CONTEXT = 256
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Hello"}]


def bytes_tokenizer() -> Any:
    """A byte-level BPE with merges that cross JSON's punctuation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(['{"name": "a", "age": 1}, [true, null]'] * 9, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        model_max_length=CONTEXT,
        chat_template=TEMPLATE,
    )


def chars_tokenizer(directory: Path, more: str = "é") -> Any:
    """As char-gpt exports one: no token for the end of a text."""
    CharTokenizer.of(JSON_CHARACTERS + "\n" + more).save(directory, CONTEXT)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def network(tokenizer: Any, eos_token_id: int | None) -> Any:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer) + 5,
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=None,
        eos_token_id=eos_token_id,
    )
    return GPT2LMHeadModel(config).train(False)


def language_model(tokenizer: Any) -> LanguageModel:
    source = VerifiedModel(Path(), "json", None, "sha256:0", datetime.now(UTC))
    return LanguageModel(
        source, network(tokenizer, tokenizer.eos_token_id), tokenizer, torch.device("cpu")
    )


@pytest.fixture(scope="module", params=["bytes", "characters"])
def model(request: pytest.FixtureRequest, tmp_path_factory: Any) -> LanguageModel:
    if request.param == "bytes":
        return language_model(bytes_tokenizer())
    return language_model(chars_tokenizer(tmp_path_factory.mktemp("chars")))


def answer(model: LanguageModel, schema: dict[str, Any], **sampling: Any) -> tuple[str, str | None]:
    """The text, and why it ended."""
    options = {"max_tokens": 400, "seed": 1} | sampling
    chunks = write(model, model.encode("a"), grammar=model.grammar(schema), **options)
    return text_of(chunks), chunks[-1].finish_reason


STRINGS = st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5))
NUMBERS = st.builds(
    lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
    st.integers(-50, 50),
    st.integers(0, 500),
)
ENUMS = st.builds(
    lambda values: {"enum": values},
    st.lists(st.sampled_from(["a", 'q"', "x y", 1, None, True, 2.5]), min_size=1, unique_by=repr),
)
LEAVES = STRINGS | NUMBERS | ENUMS | st.sampled_from([{"type": "boolean"}, {"type": "null"}])


def arrays(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": 2}


def objects(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:1],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(arrays, inner)
        | st.builds(objects, st.dictionaries(st.sampled_from(["a", "b c", "d"]), inner, max_size=2))
    ),
    max_leaves=4,
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(schema=SCHEMAS, seed=st.integers(0, 100))
def test_every_answer_is_json_of_its_schema(
    model: LanguageModel, schema: dict[str, Any], seed: int
) -> None:
    text, reason = answer(model, schema, seed=seed)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), schema)


def test_the_most_likely_answer_follows_it_too(model: LanguageModel) -> None:
    text, _ = answer(model, PERSON, temperature=0)
    jsonschema.validate(json.loads(text), PERSON)


def test_a_limit_cuts_the_json(model: LanguageModel) -> None:
    text, reason = answer(model, PERSON, max_tokens=3)
    assert reason == "length"
    assert '{"name": "'.startswith(text) or text.startswith('{"name": "')


def test_two_texts_of_one_grammar_do_not_disturb_each_other(model: LanguageModel) -> None:
    grammar = model.grammar(PERSON)
    texts = [
        text_of(write(model, model.encode("a"), grammar=grammar, max_tokens=400, seed=seed))
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "Invalid type"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "does not fetch"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "const": 5}, "Unsatisfiable"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, f"at most {MAX_SCHEMA_BYTES}"),
        ({"const": "日"}, "U+65E5"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_one_line(
    model: LanguageModel, schema: dict[str, Any], words: str, request: pytest.FixtureRequest
) -> None:
    if "日" in str(schema) and "bytes" in request.node.name:
        assert answer(model, schema)[0] == '"日"'
        return
    with pytest.raises(PromptError) as error:
        model.grammar(schema)
    assert error.value.param == "response_format"
    assert words in error.value.detail
    assert "\n" not in error.value.detail


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f"^[a-z]{{0,{n}}}[0-9]*x{n}"} for n in range(1, count)]


def chained(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """Each refers to the next."""
    last = {"type": "string"}
    links = [one | {"$ref": f"#/$defs/{n}"} for n, one in enumerate(schemas, start=1)]
    return {"$defs": dict(zip("0123456789", [*links, last], strict=False)), "$ref": "#/$defs/0"}


WAYS = [
    {"pattern": "|".join(f"[a-{end}]{{0,{n}}}[0-9]*x{n}" for end in "bcdefghijklmnop")}
    for n in range(20, 28)
]
# Each takes llguidance many seconds, or gigabytes.
COSTLY = {
    "allOf": {"allOf": patterns(25)},
    "of properties": {"allOf": [objects({"a": each}) for each in patterns(25)]},
    "$ref": chained([{"type": "string"} | each for each in WAYS]),
    "anyOf": {"anyOf": [{"allOf": patterns(25)}, {"type": "null"}]},
    "fewer, longer patterns": {"type": "string", "allOf": WAYS},
    "patternProperties": {
        "type": "object",
        "patternProperties": {f"^{n:03}.*$": {"type": "integer"} for n in range(500)},
        "additionalProperties": {"type": "string"},
    },
    "multipleOf": {"anyOf": [{"type": "integer", "multipleOf": 7000 + n} for n in range(9)]},
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_schema_that_takes_much_work_is_refused_before_it(
    model: LanguageModel, name: str
) -> None:
    with pytest.raises(PromptError, match="use fewer or simpler ones") as error:
        model.grammar(COSTLY[name])
    assert error.value.param == "response_format"
    assert error.value.detail.startswith("response_format: ")
    assert len(error.value.detail) < 250
    assert "\n" not in error.value.detail


def test_patterns_that_hold_for_different_strings_are_not_counted_together(
    model: LanguageModel,
) -> None:
    described = {"$ref": "#/$defs/code", "description": "One of ours.", "default": "x1"}
    optional = {"anyOf": [described, {"type": "null"}], "title": "Code", "default": None}
    many = objects({f"p{n}": each for n, each in enumerate(patterns(24))} | {"code": optional})
    model.grammar(many | {"$defs": {"code": {"type": "string", "pattern": "^x[0-9]$"}}})


def test_what_real_schemas_combine_is_accepted(model: LanguageModel) -> None:
    email = {"type": "string", "format": "email", "maxLength": 20}
    price = {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 9}
    base = {"type": "object", "properties": {"email": email, "price": price}}
    lots = {"type": "integer", "multipleOf": 1000, "minimum": 0, "maximum": 9000}
    more = {"properties": {"email": {"pattern": "^[a-z]+@[a-z]+[.]com$"}, "lots": lots}}
    model.grammar({"$defs": {"base": base}, "allOf": [{"$ref": "#/$defs/base"}, more]})


def test_a_model_without_json_s_characters_says_so(tmp_path: Path) -> None:
    CharTokenizer.of("to be or not").save(tmp_path, CONTEXT)
    plain = language_model(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    with pytest.raises(PromptError, match="this model cannot write"):
        plain.grammar(PERSON)


def test_over_http_answers_are_json_and_bad_formats_a_400(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    network(tokenizer, tokenizer.eos_token_id).save_pretrained(tmp_path)
    write_manifest(tmp_path)
    with loaded(model=tmp_path) as client:
        schema = {"name": "person", "schema": PERSON, "strict": True}
        response = ask(client, {"type": "json_schema", "json_schema": schema})
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)
        assert ask(client, {"type": "text"}).status_code == 200
        text = ask(client, {"type": "json_object"}).json()["choices"][0]["message"]["content"]
        assert text.startswith("{")
        for bad in (
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_object", "json_schema": schema},
            {"type": "json_schema", "json_schema": {"schema": PERSON}},
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}},
        ):
            error = ask(client, bad)
            assert error.status_code == 400, error.text
            assert error.json()["error"]["param"] == "response_format"


def ask(client: httpx.Client, form: dict[str, Any]) -> httpx.Response:
    body = {"messages": HELLO, "seed": 1, "max_tokens": 300, "response_format": form}
    return client.post("/v1/chat/completions", json=body)


def test_sglang_gets_the_format_as_it_came() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    request = ChatRequest.model_validate({"messages": HELLO, "response_format": form})
    assert sglang_request(request, "llama")["response_format"] == form
