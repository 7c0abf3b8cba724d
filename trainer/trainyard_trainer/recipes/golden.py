"""Golden requests of an exported model: held-out inputs with the model's own outputs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainyard_api.golden import (
    MAX_EVALUATION_TEXTS,
    EvaluationText,
    GoldenClasses,
    GoldenText,
    write_evaluation,
    write_golden,
)
from trainyard_trainer.data.rows import Labels

PROMPT_TOKENS = 16
NEXT_TOKENS = 4
TOP = 5


def prompt_tokens(context: int) -> int:
    """Prompt length that leaves room for NEXT_TOKENS in a context of this many tokens."""
    return min(PROMPT_TOKENS, max(1, context - NEXT_TOKENS))


@torch.no_grad()
def write_golden_text(
    directory: Path,
    prompt: str,
    prompt_ids: list[int],
    context: int,
    logits: Callable[[Tensor], Tensor],
) -> None:
    """Write `prompt` and the model's greedy continuation of it to golden.json.

    Args:
        context: maximum sequence length of the model.
        logits: token ids (1, T) to logits (1, T, V), on the CPU.
    """
    next_tokens = min(NEXT_TOKENS, context - len(prompt_ids))
    if not prompt_ids or next_tokens < 1:
        return
    ids = list(prompt_ids)
    top_ids, top_logits = [], []
    for _ in range(next_tokens):
        position = logits(torch.tensor([ids]))[0, -1].float()
        best = position.topk(min(TOP, len(position)))
        top_ids.append(best.indices.tolist())
        top_logits.append(best.values.tolist())
        ids.append(top_ids[-1][0])
    golden = GoldenText(
        prompt=prompt,
        prompt_ids=prompt_ids,
        next_ids=ids[len(prompt_ids) :],
        top_ids=top_ids,
        top_logits=top_logits,
    )
    write_golden(directory, golden)


GOLDEN_TEXTS = 8


def choose_rows(labels: Labels) -> list[int]:
    """At most MAX_EVALUATION_TEXTS of the rows with these labels, balanced over the classes."""
    positions = np.zeros(len(labels), dtype=np.int64)  # of each row within its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        positions[members] = np.arange(len(members))
    chosen: list[int] = np.argsort(positions, kind="stable")[:MAX_EVALUATION_TEXTS].tolist()
    return chosen


def choose_texts(texts: Sequence[str] | Mapping[int, str], labels: Labels) -> list[EvaluationText]:
    """The texts of `choose_rows`; `texts` may be those alone, by row."""
    return [EvaluationText(text=texts[i], label=int(labels[i])) for i in choose_rows(labels)]


@torch.no_grad()
def write_golden_classes(
    directory: Path, labels: list[str], texts: list[EvaluationText], max_length: int
) -> None:
    """Write evaluation.jsonl and golden.json beside an exported DistilBERT and its tokenizer.

    The probabilities are computed from the written files, as the server will load them.
    """
    from transformers import AutoTokenizer, DistilBertForSequenceClassification

    write_evaluation(directory, texts)
    model = DistilBertForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    model.train(False)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    first = [text.text for text in texts[:GOLDEN_TEXTS]]
    inputs = tokenizer(
        first, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    probabilities = logits.softmax(-1).tolist()
    write_golden(directory, GoldenClasses(labels=labels, texts=first, probabilities=probabilities))
