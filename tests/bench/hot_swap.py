"""Swaps of the model under load: failed requests, refused models, and what swapping costs.

    OMP_NUM_THREADS=1 python -m tests.bench.hot_swap [--swaps 20] [--clients 8]

A server follows a run into which good models and spoilt ones (a flipped byte, a cut file, NaN
weights, a wrong golden request) are published in turn, while clients ask without a pause. Every
answer is checked against the model that its x-trainyard-digest header names.
"""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.bench.serving_process import export_tiny, serving
from tests.unit.serving.swap_load import swap_under_load
from trainyard_serving.generate.completion import Sampling
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.verified import describe_plain

REQUEST = {"prompt": "to be", "max_tokens": 16, "temperature": 0}


def greedy(directory: Path) -> str:
    """What the model answers to REQUEST."""
    model = LanguageModel.load(describe_plain(directory), "cpu")
    sampling = Sampling(max_tokens=16, temperature=0)
    return "".join(chunk.text for chunk in model.complete(0, model.encode("to be"), sampling))


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/completions", json=REQUEST)


def tell(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        made = [export_tiny(Path(folder) / str(n), n, n_layer=4, n_embd=128) for n in (1, 2)]
        models = [(directory, greedy(directory)) for directory in made]
        assert models[0][1] != models[1][1]
        with serving(f"--run-dir={run}", "--poll-seconds=0.1") as server:
            began = time.monotonic()
            swaps = asyncio.run(
                swap_under_load(
                    server.url, run, models, ask, tell, args.swaps, num_clients=args.clients
                )
            )
            took = time.monotonic() - began
    answers = Counter(swaps.answers)
    print(
        f"{args.swaps} models published in {took:.1f} s, {len(swaps.bad)} of them spoilt;"
        f" {answers.total():,} requests by {args.clients} clients ({answers.total() / took:.0f}/s)"
    )
    print(f"failed requests: {len(swaps.failed)}")
    print(f"spoilt models refused: {swaps.refused} of {len(swaps.bad)}")
    print(f"answers by a spoilt model: {sum(answers[name] for name in swaps.bad)}")
    print(f"answers under another model's digest: {len(swaps.untrue)}")


if __name__ == "__main__":
    main()
