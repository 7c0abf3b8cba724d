"""The generation engine beside transformers' own continuous batching, in one process.

    python -m tests.bench.generate_engines [--repeats 3] [--shape 124M]

Both decode the same prompts greedily, eight at a time, on one thread, in turns. Prints tokens/s of
each and their ratio.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.bench.generate_serving import SUBJECTS, export
from trainyard_serving.generate.engine import Chunk, SamplingOptions
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain

TEXTS = 8
NUM_TOKENS = {"0.8M": 100, "124M": 16}
Tokens = list[list[int]]


def ours(model: LanguageModel, prompts: Tokens, num_tokens: int) -> int:
    """Number of tokens that the server's engine generates."""
    options = SamplingOptions(max_tokens=num_tokens, temperature=0)
    sequences = [model.new_sequence(i, prompt, options) for i, prompt in enumerate(prompts)]
    batch = model.new_batch(len(prompts))
    for sequence in sequences:
        batch.add(sequence)
    count = 0
    while batch.sequences:
        for _, chunk in [*batch.prefill(), *batch.decode()]:
            assert isinstance(chunk, Chunk)
            count += chunk.num_tokens
    return count


def theirs(model: Any, prompts: Tokens, num_tokens: int) -> int:
    """The same of transformers' `generate_batch`."""
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    results = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    return sum(len(result.generated_tokens) for result in results.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", choices=SUBJECTS, default="0.8M")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    shape, num_tokens = SUBJECTS[chosen.shape].shape, NUM_TOKENS[chosen.shape]
    with tempfile.TemporaryDirectory() as folder:
        directory = export(Path(folder) / "model", shape)
        served = LanguageModel.load(describe_plain(directory), "cpu")
        plain: Any = AutoModelForCausalLM.from_pretrained(directory)
        plain.eval()
    chance = random.Random(0)
    prompts = [
        [chance.randrange(2, 90) for _ in range(chance.randrange(10, 40))] for _ in range(TEXTS)
    ]
    engines = {"ours": partial(ours, served), "transformers": partial(theirs, plain)}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(chosen.repeats + 1):
        for name, engine in engines.items():
            began = time.perf_counter()
            count = engine(prompts, num_tokens)
            if repeat:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - began))
    median = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name}: {median[name]:.1f} tokens/s ({spread})")
    print(f"ours / transformers: {median['ours'] / median['transformers']:.1f}")


if __name__ == "__main__":
    main()
