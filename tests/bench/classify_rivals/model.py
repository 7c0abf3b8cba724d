"""The classifier as all rivals compute it: PyTorch, 32 bits."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Model:
    """Computes what POST /predict of the classify app returns."""

    def __init__(self, directory: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(Path(directory))
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(Path(directory))
        self.model.train(False)
        self.labels = [self.model.config.id2label[n] for n in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """One answer per text."""
        inputs = self.tokenizer(
            texts, truncation=True, padding=True, return_tensors="pt", return_token_type_ids=False
        )
        answers = []
        for probabilities in self.model(**inputs).logits.softmax(-1).tolist():
            probs = dict(zip(self.labels, probabilities, strict=True))
            label = max(probs, key=probs.__getitem__)
            answers.append({"label": label, "confidence": probs[label], "probs": probs})
        return answers
