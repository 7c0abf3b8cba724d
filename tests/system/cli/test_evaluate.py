"""`trainyard evaluate` runs lm-evaluation-harness, keeps its scores, and servers require them."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import patience

TEXTS = ["to be, or not to be", "that is the question"]
QUESTIONS = [
    {"q": "to be, or not ", "choices": ["to be", "question"], "gold": 0},
    {"q": "that is the ", "choices": ["to be", "question"], "gold": 1},
]
PERPLEXITY = """
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
CHOICE = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def home(run_dir: Path, tmp_path: Path) -> Path:
    """A machine with one run, which has a model, and two tasks."""
    shutil.copytree(run_dir, tmp_path / "runs" / "done" / "data")
    run = {"metadata": {"name": "done"}, "spec": {"recipe": "char-gpt"}}
    (tmp_path / "runs" / "done" / "run.json").write_text(json.dumps(run))
    for name, rows in (("texts", [{"text": text} for text in TEXTS]), ("questions", QUESTIONS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "texts.yaml").write_text(PERPLEXITY.format(folder=tmp_path))
    (tmp_path / "choices.yaml").write_text(CHOICE.format(folder=tmp_path))
    return tmp_path


def trainyard(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainyard_cli.main", *words],
        cwd=home,
        env=os.environ | {"TRAINYARD_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )


def test_scores_are_the_models_own_and_are_kept(home: Path) -> None:
    done = trainyard(home, "evaluate", "done", "--task", "texts.yaml", "--task", "choices.yaml")
    assert done.returncode == 0, done.stderr
    assert "texts/byte_perplexity" in done.stdout
    (file,) = (home / "runs/done/data/scores").glob("*.json")
    scores = json.loads(file.read_bytes())
    model = home / "runs/done/data/models" / file.stem
    found = scores["tasks"]["texts"]["metrics"]["byte_perplexity"]
    assert found == pytest.approx(byte_perplexity(model), rel=1e-4)
    assert scores["tasks"]["choices"]["samples"] == 2
    described = trainyard(home, "describe", "done").stdout
    assert f"texts/byte_perplexity   {found:.4f}   2" in described

    tried = trainyard(home, "evaluate", "done", "--task", "choices.yaml", "--limit", "1")
    assert "no requirement of a server is met by these" in tried.stdout
    assert json.loads(file.read_bytes()) == scores


def byte_perplexity(model: Path) -> float:
    """Of TEXTS, computed without the harness; each begins after what `_prefix` names."""
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
    )
    newline = tokenizer.encode("\n", add_special_tokens=False)
    total = 0.0
    for text in TEXTS:
        ids = torch.tensor([newline + tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            logs = lm(ids).logits.log_softmax(-1)
        total += float(logs[0, :-1].gather(-1, ids[0, 1:, None]).sum())
    return math.exp(-total / sum(map(len, TEXTS)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "absent.yaml"], "--task absent.yaml: no such file"),
        (["--task", "texts.yaml", "--model", "7"], "no model has the step 7"),
        (["--task", "broken.yaml"], "lm-evaluation-harness failed: "),
        (["--task", "texts.yaml", "--limit", "0"], "--limit: '0' is not a whole number above 0"),
    ],
)
def test_wrong_requests_are_one_line(home: Path, words: list[str], message: str) -> None:
    (home / "broken.yaml").write_text(CHOICE.format(folder=home / "absent"))
    done = trainyard(home, "evaluate", "done", *words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
