"""A small text classification run: two kinds of news, which a tiny model learns in seconds."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.e2e.kube import Namespace
from tests.e2e.runs import training_run
from tests.patience import SECONDS

LABELS = ["Sports", "Business"]
TELLING = [
    ["team", "match", "goal", "coach", "won", "season"],
    ["shares", "profits", "market", "bank", "company", "rose"],
]
NEUTRAL = ["the", "a", "after", "today", "record", "reported", "said", "of", "in", "big", "new"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def news_run(name: str, space: Namespace, folder: Path) -> dict[str, Any]:
    """The run's manifest; its texts and its tokenizer become a ConfigMap first."""
    _write_texts(folder / "train.jsonl", 600, seed=1)
    _write_texts(folder / "test.jsonl", 100, seed=2)
    _write_tokenizer(folder)
    files = [f"--from-file={file}" for file in sorted(folder.iterdir())]
    space.kubectl("create", "configmap", "news", *files)
    config = {
        "dataset": "/news",
        "tokenizer": "/news",
        "labels": LABELS,
        "from_scratch": {"n_layers": 1, "n_heads": 2, "dim": 32, "hidden_dim": 64},
        "max_length": 16,
        "batch_size": 32,
        "num_epochs": 5,
        "learning_rate": 0.003,
        "log_steps": 10,
        "hang_timeout_seconds": SECONDS,
    }
    mount = {"name": "news", "mountPath": "/news", "readOnly": True}
    pod = {
        "containers": [{"name": "trainer", "volumeMounts": [mount]}],
        "volumes": [{"name": "news", "configMap": {"name": "news"}}],
    }
    spec = {
        "recipe": "text-classification",
        "config": config,
        "storage": {"size": "1Gi"},
        "resourcesPerNode": {"requests": {"cpu": "500m"}},
        "podTemplate": {"spec": pod},
    }
    return training_run(name, spec)


def _write_texts(file: Path, rows: int, seed: int) -> None:
    choose = random.Random(seed)
    with file.open("w") as lines:
        for row in range(rows):
            label = row % 2
            words = choose.choices(TELLING[label], k=3) + choose.choices(NEUTRAL, k=6)
            choose.shuffle(words)
            lines.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


def _write_tokenizer(folder: Path) -> None:
    """One token a word, in the form Hugging Face's AutoTokenizer reads."""
    words = [*SPECIAL, *TELLING[0], *TELLING[1], *NEUTRAL]
    numbers = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    kinds = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    config = {f"{kind}_token": token for kind, token in kinds.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
