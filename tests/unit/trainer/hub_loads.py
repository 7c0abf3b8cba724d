"""Loads from the Hub in each way that recipes do, for test_hub_errors.py: one line on stdin for
each time, one JSON answer a line: {WAY: [class of the error, its message]}.

The Hub's libraries try again by themselves for 23 s; here they don't wait in between.
"""

import json
import sys
import time
from collections.abc import Callable

from trainyard_trainer.data.corpus import load_text
from trainyard_trainer.data.rows import Rows
from trainyard_trainer.data.tokenizers import BPETokenizer
from trainyard_trainer.errors import UserError
from trainyard_trainer.recipes.hugging_face import load_config, load_tokenizer

NAME = "me/nothing"
WAYS: dict[str, Callable[[], object]] = {
    "a text": lambda: load_text(f"hub:{NAME}"),
    "rows": lambda: Rows("dataset", f"hub:{NAME}", "train", ["text"]),
    "remote rows": lambda: Rows("dataset", f"hf://datasets/{NAME}", "train", ["text"]),
    "a BPE tokenizer": lambda: BPETokenizer(NAME),
    "a model's tokenizer": lambda: load_tokenizer("model", NAME),
    "a model's shape": lambda: load_config("model", NAME),
}


def outcome(load: Callable[[], object]) -> list[str]:
    try:
        load()
    except UserError as error:
        return [type(error).__name__, str(error)]
    return ["loaded", ""]


def main() -> None:
    time.sleep = lambda _: None
    for _ in sys.stdin:
        print(json.dumps({way: outcome(load) for way, load in WAYS.items()}), flush=True)


if __name__ == "__main__":
    main()
