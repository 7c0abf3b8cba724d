"""lm-evaluation-harness, unmodified, scores a server as its own backend scores the same model."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.serving.chat_model import CHAT_CONTEXT, export_chat_gpt
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded

lm_eval: Any = import_module("lm_eval")

# They fit the context: the harness truncates others differently for its two kinds of model.
DOCUMENTS = [
    {"text": "To be, or not to be", "choices": [" that", " is the question", "!"], "label": 1},
    {"text": "été, 日 and 🚂", "choices": ["a", "b b"], "label": 0},
    {"text": "Whether it is nobler in the mind to suffer. " * 2, "choices": ["z", "é"], "label": 1},
]
COMMON = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {documents}
test_split: test
"""
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
    "generation": """
output_type: generate_until
doc_to_text: "{{text[:80]}}"
doc_to_target: "{{text[80:]}}"
generation_kwargs: {until: ["q", "日"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model of characters with an end of text, which the harness puts before texts."""
    directory = tmp_path / "model"
    export_chat_gpt(directory, template=None)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(directory)
    write_manifest(directory, run="scored")
    return directory


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """Our own tasks, and none of the harness's."""
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        common = COMMON.format(documents=documents)
        (folder / f"{name}.yaml").write_text(f"task: {name}{common}{task}")
    return import_module("lm_eval.tasks").TaskManager(
        include_path=str(folder), include_defaults=False
    )


def answers(results: Any) -> dict[str, list[Any]]:
    """For each task, what the model answered to each request."""
    return {
        task: [sample["resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for task, samples in results["samples"].items()
    }


def close(value: Any) -> Any:
    """What a value equals although it was rounded differently."""
    if isinstance(value, (list, tuple)):
        return type(value)(close(one) for one in value)
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


def test_scores_are_those_of_transformers(
    model_dir: Path, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    how: dict[str, Any] = {
        "tasks": list(TASKS),
        "task_manager": tasks,
        "log_samples": True,
        "bootstrap_iters": 0,
    }
    expected = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model_dir), "dtype": "float32"},
        device="cpu",
        batch_size=1,
        **how,
    )
    with loaded(model=model_dir) as client:
        scored = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "scored",
                "base_url": f"{client.base_url}/v1/completions",
                "tokenizer": str(model_dir),
                "max_length": CHAT_CONTEXT,
                "num_concurrent": 2,
            },
            batch_size=2,
            **how,
        )
    assert set(expected["results"]) == set(TASKS)
    for task, scores in expected["results"].items():
        for metric, score in scores.items():
            if isinstance(score, float):
                assert scored["results"][task][metric] == pytest.approx(score, rel=1e-4), metric
    wanted = answers(expected)
    assert len(str(wanted["generation"])) > 50
    for task, got in answers(scored).items():
        assert [close(one) for one in got] == wanted[task]
