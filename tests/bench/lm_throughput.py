"""Tokens per second of recipe gpt beside a plain loop and the Hugging Face Trainer.

    python -m tests.bench.lm_throughput [--repeats 5] [--tokenizer DIR --text FILE]

The same model shape for all: by default nanoGPT's for a CPU, over the characters of the standard
library's source; with --tokenizer and --text over the tokens of a text, such as GPT-2's of Tiny
Shakespeare. The Hugging Face Trainer saves checkpoints as the trainer does. See versus.py.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.versus import Contest, parser, run
from trainyard_trainer.data.corpus import load_text
from trainyard_trainer.data.tokenizers import BPETokenizer, CharTokenizer, split_text

SHAPE = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}


def contest(options: argparse.Namespace, folder: Path) -> Contest:
    """Write the tokens and the tokenizer that all contenders use."""
    tokens, text = folder / "tokens.npy", load_text(options.text)
    shape = {name: getattr(options, name) for name in SHAPE}
    tokenizer = options.tokenizer or str(folder)
    if options.tokenizer:
        bpe = BPETokenizer(options.tokenizer)
        vocab_size = bpe.vocab_size
        np.save(tokens, bpe.encode_all(split_text(text), None))
    else:
        characters = CharTokenizer.of(text)
        vocab_size = characters.vocab_size
        characters.save(folder, options.block_size)
        np.save(tokens, characters.encode(text).astype(np.uint16))
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    config = {"corpus": str(tokens), "tokenizer": tokenizer, "pad_vocab_to_multiple_of": 1}
    return Contest(
        recipe="gpt",
        config=shape | config | {"learning_rate": 1e-3, "sample_tokens": 1},
        precision="fp32",
        script="plain_loop.py",
        arguments=[*arguments, f"--tokens={tokens}", f"--vocab-size={vocab_size}"],
        rivals={"Hugging Face Trainer": "hf_trainer.py"},
        tokens_per_sample=options.block_size,
    )


def main() -> None:
    options = parser(str(__doc__).splitlines()[0], batch_size=12)
    options.add_argument("--tokenizer", help="a directory with tokenizer.json (characters)")
    options.add_argument("--text", default="stdlib", help="as a recipe's corpus (%(default)s)")
    for name, value in SHAPE.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(contest(chosen, Path(folder)), chosen)


if __name__ == "__main__":
    main()
