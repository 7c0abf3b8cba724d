"""Small runs of every recipe, their memory as estimated and as measured in real ranks."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.trainer.ranks import Launcher, RankServer, tiny_job
from trainyard_trainer.config import parse_config
from trainyard_trainer.estimate.fake_run import Setup, peak_memory
from trainyard_trainer.registry import find_recipe

WORDS = 2000
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
Mode = Literal["ddp", "fsdp"]


def write_data(folder: Path) -> dict[str, dict[str, Any]]:
    """Data for every recipe; the settings of small runs on it, by what they show.

    All samples are as large as they can be: the estimate is of such batches.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from PIL import Image
    from pyarrow import parquet

    vocabulary = [*SPECIAL.values(), *(f"w{number}" for number in range(WORDS - len(SPECIAL)))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    made.save(str(tokenizer / "tokenizer.json"))
    about = SPECIAL | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(about))
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(vocabulary[3:], 150)) for _ in range(48)]
    (folder / "corpus.txt").write_text("\n".join(texts))
    rows = pa.table({"text": texts, "label": np.arange(48) % 3})
    # With the end of the text 20 tokens: five of them fill a packed row of 96.
    short = pa.table({"text": [" ".join(random.choice(vocabulary[3:], 19)) for _ in range(48)]})
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(file, "PNG")
    images = pa.table({"img": [file.getvalue()] * 48, "label": np.arange(48) % 3})
    for name, table in (("texts", rows), ("short", short), ("images", images)):
        (folder / name).mkdir()
        for split in ("train", "test"):
            parquet.write_table(table, folder / name / f"{split}.parquet")

    shape = {"block_size": 96, "n_layer": 4, "n_head": 4, "n_embd": 128}
    corpus = {"corpus": str(folder / "corpus.txt"), "sample_tokens": 1} | shape
    finetune = {
        "model": str(model),
        "from_scratch": True,
        "tokenizer": str(tokenizer),
        "dataset": str(folder / "texts"),
        "text_column": "text",
        "max_length": 96,
        "eval_samples": 2,
        "eval_on_start": False,
        "sample_tokens": 1,
    }
    return {
        "char-gpt": corpus,
        "gpt": corpus | {"tokenizer": str(tokenizer)},
        "causal-lm-finetune": finetune,
        "causal-lm-finetune packed": finetune | {"packing": True, "dataset": str(folder / "short")},
        "causal-lm-finetune lora": finetune | {"lora": {"target_modules": "all-linear"}},
        "text-classification": {
            "dataset": str(folder / "texts"),
            "tokenizer": str(tokenizer),
            "max_length": 96,
            "from_scratch": {"n_layers": 4, "n_heads": 4, "dim": 128, "hidden_dim": 512},
        },
        "image-classification": {
            "dataset": str(folder / "images"),
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128],
            "depths": [1, 1, 1],
        },
    }


def small(settings: dict[str, Any], ranks: int, accumulation: int = 1) -> dict[str, Any]:
    """The settings with as many steps and samples as a measurement takes."""
    return settings | {
        "max_steps": 3,
        "batch_size": 8 * ranks * accumulation,
        "gradient_accumulation_steps": accumulation,
        "eval_steps": 0,
        "eval_batches": 1,
    }


def estimated(
    recipe: str, config: dict[str, Any], ranks: int, strategy: Mode, precision: Any = "fp32"
) -> int:
    """Bytes at the peak of a rank, as estimated."""
    cls = find_recipe(recipe)
    settings = parse_config(cls.Config, config)
    setup = Setup(settings, strategy, precision, ranks)
    return peak_memory(cls.outline(settings), setup).total()


def measuring_server(folder: Path, device: str = "cpu") -> RankServer:
    """One for `measured`; `folder` is for a library that it needs on the CPU."""
    environment = {}
    if device == "cpu":
        library = folder / "count_memory.so"
        source = Path(__file__).with_name("count_memory.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        environment["LD_PRELOAD"] = str(library)
    server = RankServer(environment)
    server.preload("tests.support.trainer.peak_memory")
    return server


def measured(
    server: RankServer,
    folder: Path,
    recipe: str,
    config: dict[str, Any],
    ranks: int,
    strategy: Mode,
    precision: Any = "fp32",
    require_gpu: bool = False,
) -> int:
    """Bytes at the peak of a rank, in a real run of that many ranks below `folder`.

    `server`: see measuring_server.
    """
    fields = {"strategy": strategy, "precision": precision, "require_gpu": require_gpu}
    job = tiny_job(folder, recipe, config, **fields)
    run = Launcher(server, folder / "ranks")(job, ranks, env={"PEAK_MEMORY": str(folder)})
    run.wait_until(lambda: all(map(_read, map(folder.joinpath, map(str, range(ranks))))), "a peak")
    run.kill()
    return max(int((folder / str(rank)).read_text()) for rank in range(ranks))


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
