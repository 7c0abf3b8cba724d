"""A gpt job for benchmarks: any shape, characters of the standard library as its tokens."""

from pathlib import Path
from typing import Any

import numpy as np

from trainyard_api.job import TrainerJob
from trainyard_trainer.data.corpus import load_text
from trainyard_trainer.data.tokenizers import CharTokenizer

GPT2_SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "pad_vocab_to_multiple_of": 50304}


def gpt_job(folder: Path, config: dict[str, Any], **job: Any) -> TrainerJob:
    """A job in `folder`; its tokens and tokenizer are written there, too.

    With GPT2_SHAPE the embedding is as large as GPT-2's, though few of its rows are used.
    """
    text = load_text("stdlib")
    characters = CharTokenizer.of(text)
    characters.save(folder, 1024)
    np.save(folder / "tokens.npy", characters.encode(text).astype(np.uint16))
    settings = {
        "corpus": str(folder / "tokens.npy"),
        "tokenizer": str(folder),
        "eval_steps": 0,
        "eval_batches": 1,
        "sample_tokens": 1,
    }
    values: dict[str, Any] = {
        "run": "bench",
        "recipe": "gpt",
        "run_dir": str(folder / "run"),
        "report_port": 0,
    }
    return TrainerJob(**(values | job), config=settings | config)
