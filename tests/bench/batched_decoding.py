"""What continuous batching could gain: four texts decoded as one batch, and one after the other.

    OMP_NUM_THREADS=2 python -m tests.bench.batched_decoding [--repeats 3] [--tokens 48]

transformers' own models and key-value cache, in the best case for a batch: prompts of one length,
texts that end together, greedy. Interleaved repetitions; prints tokens/s and their ratio by shape.
"""

import argparse
import statistics
import time

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

TEXTS = 4
PROMPT = 32
SHAPES = {  # layers, width, heads, vocabulary
    "char-gpt, 0.8 M": (4, 128, 4, 100),
    "GPT-2, 124 M": (12, 768, 12, 50257),
}


def model_of(shape: tuple[int, int, int, int]) -> GPT2LMHeadModel:
    n_layer, n_embd, n_head, vocab_size = shape
    config = GPT2Config(vocab_size=vocab_size, n_layer=n_layer, n_embd=n_embd, n_head=n_head)
    return GPT2LMHeadModel(config).train(False)  # type: ignore[no-any-return]


@torch.inference_mode()
def decode(model: GPT2LMHeadModel, ids: torch.Tensor, tokens: int) -> None:
    """Write `tokens` greedy tokens after each row of `ids`."""
    cache = DynamicCache(config=model.config)
    for _ in range(tokens):
        logits = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)


def seconds(model: GPT2LMHeadModel, prompts: list[torch.Tensor], tokens: int) -> float:
    began = time.perf_counter()
    for ids in prompts:
        decode(model, ids, tokens)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    torch.manual_seed(1)
    print(f"{TEXTS} texts of {args.tokens} tokens, {torch.get_num_threads()} threads")
    for name, shape in SHAPES.items():
        model = model_of(shape)
        ids = torch.randint(shape[-1], (TEXTS, PROMPT))
        ways = {"batch": [ids], "one by one": [ids[row : row + 1] for row in range(TEXTS)]}
        took: dict[str, list[float]] = {way: [] for way in ways}
        decode(model, ids, 4)
        for _ in range(args.repeats):
            for way, prompts in ways.items():
                took[way].append(seconds(model, prompts, args.tokens))
        rates = {way: TEXTS * args.tokens / statistics.median(times) for way, times in took.items()}
        shown = ", ".join(f"{way} {rate:7.1f} tokens/s" for way, rate in rates.items())
        print(f"{name:16} {shown}, ratio {rates['batch'] / rates['one by one']:.2f}")


if __name__ == "__main__":
    main()
