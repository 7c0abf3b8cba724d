"""A tiny text classifier in the form a run exports, for the tests of the classify app."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tests.support.serving.models import write_manifest
from trainyard_api.golden import EvaluationText, GoldenClasses, write_evaluation, write_golden

LABELS = ["World", "Sports", "Business", "Sci/Tech"]
WORDS = [f"word{number}" for number in range(200)]
CONTEXT = 32


def write_news_model(directory: Path, seed: int = 0, change: Any = None, **manifest: Any) -> None:
    """Export an untrained DistilBERT; its own answers are the truth of its evaluation texts.

    `change` modifies the model before that.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=CONTEXT
    )
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=CONTEXT,
        n_layers=2,
        n_heads=2,
        dim=32,
        hidden_dim=64,
        pad_token_id=0,
        initializer_range=0.3,  # untrained, but with distinct logits
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        architectures=["DistilBertForSequenceClassification"],
    )
    model = DistilBertForSequenceClassification(config).train(False)
    if change:
        with torch.no_grad():
            change(model)
    model.save_pretrained(directory)
    choose = random.Random(1)
    texts = [" ".join(choose.choices(WORDS, k=choose.randint(1, 20))) for _ in range(200)]
    inputs = fast(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
    write_evaluation(
        directory,
        [
            EvaluationText(text=text, label=label)
            for text, label in zip(texts, logits.argmax(-1).tolist(), strict=True)
        ],
    )
    golden = GoldenClasses(
        labels=LABELS, texts=texts[:8], probabilities=logits[:8].softmax(-1).tolist()
    )
    write_golden(directory, golden)
    fields = {"run": "news", "recipe": "text-classification", "metrics": {"accuracy": 1.0}}
    write_manifest(directory, **(fields | manifest))
