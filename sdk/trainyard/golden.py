"""Golden requests of a model that a script publishes: its answers, which servers must reproduce."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainyard.needs import needs

with needs("run.publish(golden=...)"):
    import torch

    from trainyard_api.golden import GoldenClasses, write_golden
    from trainyard_trainer.errors import ConfigError
    from trainyard_trainer.recipes.golden import NEXT_TOKENS, write_golden_text

try:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
except ModuleNotFoundError:
    why = "run.publish(golden=...) needs transformers: pip install transformers"
    raise ImportError(why) from None


def record(directory: Path, golden: str | Sequence[str]) -> None:
    """Write golden.json: what the model in `directory` answers to `golden`.

    It is loaded from its files, on the CPU and in fp32, as servers will load it: so a folder that
    they could not load is found here. Raises ConfigError.
    """
    config = json.loads((directory / "config.json").read_bytes())
    names = " ".join(map(str, config.get("architectures") or ["a model without architectures"]))
    # Loading draws random numbers; the script's own must not depend on it.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if "ForSequenceClassification" in names:
            texts = [golden] if isinstance(golden, str) else list(golden)
            if not all(texts) or not texts:
                raise ConfigError("golden: a text is empty, or there is none")
            model, tokenizer = _load(directory, AutoModelForSequenceClassification)
            _record_classes(directory, texts, model, tokenizer)
        elif "ForCausalLM" in names or "LMHeadModel" in names:
            if not isinstance(golden, str):
                raise ConfigError("golden: for a language model it is one prompt, a str")
            model, tokenizer = _load(directory, AutoModelForCausalLM)
            _record_text(directory, golden, model, tokenizer)
        else:
            raise ConfigError(
                "golden: only ...ForCausalLM, ...LMHeadModel and ...ForSequenceClassification"
                f" answer texts, and config.json names {names}"
            )


def _load(directory: Path, auto: Any) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model, report = auto.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of whatever kind: servers could not load it either
        raise ConfigError(f"golden: {' '.join(str(error).split())[:300]}") from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"golden: the weights lack {missing[0]} ({len(missing)} are missing): save the module"
            " itself, not the one that wraps it"
        )
    return model.to("cpu").train(False), tokenizer


def _record_text(directory: Path, prompt: str, model: Any, tokenizer: Any) -> None:
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    context = min(positions, int(tokenizer.model_max_length))
    ids = list(tokenizer(prompt)["input_ids"])
    if not 0 < len(ids) <= context - NEXT_TOKENS:
        raise ConfigError(
            f"golden: the prompt has {len(ids)} tokens; use 1 to {context - NEXT_TOKENS}"
        )

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return _finite(model(ids, use_cache=False).logits)

    write_golden_text(directory, prompt, ids, context, logits)


def _record_classes(directory: Path, texts: list[str], model: Any, tokenizer: Any) -> None:
    names = model.config.id2label
    probabilities = []
    for text in texts:  # one by one: no answer depends on padding
        ids = torch.tensor([tokenizer(text, truncation=True)["input_ids"]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        probabilities += _finite(logits).softmax(-1).tolist()
    labels = [str(names[number]) for number in sorted(names)]
    write_golden(directory, GoldenClasses(labels=labels, texts=texts, probabilities=probabilities))


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(logits).all():
        raise ConfigError("golden: the model computes NaN or infinity")
    return logits.float()
