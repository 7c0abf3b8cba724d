"""What an exported text classifier comes with: labelled texts, and its own answers to a few."""

from pathlib import Path

import numpy as np
import torch

from trainyard_api.golden import (
    MAX_EVALUATION_TEXTS,
    EvaluationText,
    GoldenClasses,
    write_evaluation,
    write_golden,
)
from trainyard_trainer.data.labels import Labels

GOLDEN_TEXTS = 8


def choose_texts(texts: list[str], labels: Labels) -> list[EvaluationText]:
    """At most MAX_EVALUATION_TEXTS of the texts, as many of each class as there are."""
    places = np.zeros(len(labels), dtype=np.int64)  # of each text among those of its class
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        places[mine] = np.arange(len(mine))
    chosen = np.argsort(places, kind="stable")[:MAX_EVALUATION_TEXTS]
    return [EvaluationText(text=texts[i], label=int(labels[i])) for i in chosen.tolist()]


@torch.no_grad()
def write_golden_classes(
    directory: Path, labels: list[str], texts: list[EvaluationText], max_length: int
) -> None:
    """Write evaluation.jsonl and golden.json beside an exported DistilBERT and its tokenizer.

    The probabilities are those of the files, loaded again: what the server will load.
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
