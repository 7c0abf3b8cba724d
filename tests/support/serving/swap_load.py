"""Swaps under load: intact and damaged models are published while clients send requests."""

import asyncio
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from tests import patience
from tests.patience import until_async
from tests.support.serving.models import write_manifest
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_api.golden import GOLDEN
from trainyard_storage.checkpoints import describe_files, digest

WEIGHTS = "model.safetensors"
WORSE = "worse evaluation"  # not damaged, but refused by a server with this requirement:
REQUIRE = "eval_loss<=2"
DAMAGES = ("flipped byte", "cut file", "NaN weights", "wrong golden", WORSE)
# Sends a request.
Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
# The text of a response, by which the test recognises the model.
TextOf = Callable[[httpx.Response], str]


@dataclass
class Swaps:
    """The results of all clients."""

    answers: Counter[str] = field(default_factory=Counter)  # digest -> answers
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # answers under another model's digest
    damaged: list[str] = field(default_factory=list)  # digests of damaged models
    refused: int = 0


def publish_copy(model: Path, run: Path, step: int, damage: str | None = None) -> str:
    """Publish a copy of `model` as the run's next one; its digest."""
    hidden, final = run / MODELS / f".tmp-{step}", run / MODELS / step_name(step)
    hidden.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, hidden)
    weights = hidden / WEIGHTS
    if damage == "NaN weights":
        _fill_with_nan(weights)
    if damage == "wrong golden":
        golden = hidden / GOLDEN
        text = golden.read_text()
        for outputs in ('"topLogits":[[', '"probabilities":[['):
            text = text.replace(outputs, f"{outputs}9", 1)
        golden.write_text(text)
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=step)
    metrics = {"eval_loss": 2.5 if damage == WORSE else 1.5}
    files = describe_files(hidden)
    write_manifest(hidden, step=step, created=created, files=files, metrics=metrics)
    if damage == "flipped byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    if damage == "cut file":
        weights.write_bytes(weights.read_bytes()[:-1])
    hidden.rename(final)
    return digest(final)


def _fill_with_nan(weights: Path) -> None:
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(weights)
    for tensor in tensors.values():
        tensor.fill_(torch.nan)
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})


async def swap_under_load(
    base_url: str,
    run: Path,
    models: list[tuple[Path, str]],
    ask: Ask,
    text_of: TextOf,
    num_swaps: int,
    num_clients: int,
) -> Swaps:
    """Publish `num_swaps` models, alternately intact and damaged, while clients send requests.

    The server must require REQUIRE.

    Args:
        models: a model's directory, and what `text_of` returns for its answers; they take turns.
    """
    swaps = Swaps()
    truth: dict[str, str] = {}
    step = 0

    def publish(damage: str | None = None) -> str:
        nonlocal step
        step += 1
        directory, answer = models[step % len(models)]
        name = publish_copy(directory, run, step, damage)
        truth[name] = answer
        return name

    async def ready() -> dict[str, Any]:
        return dict((await client.get("/ready")).json())

    async def serves(name: str) -> None:
        async def served() -> bool:
            return bool((await ready()).get("digest") == name)

        await until_async(served)

    async def answers(name: str) -> None:
        so_far = swaps.answers[name]

        async def answered() -> bool:
            return swaps.answers[name] >= so_far + 2 or bool(swaps.failed)

        await until_async(answered)

    async def all_refused() -> bool:
        return len((await ready())["refused"]) >= len(swaps.damaged)

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while True:
            response = await ask(client)
            name = response.headers.get("x-trainyard-digest", "")
            if response.status_code != 200:
                swaps.failed.append(f"{response.status_code}: {response.text[:200]}")
            elif truth.get(name) != text_of(response):
                swaps.wrong.append(f"{name}: {text_of(response)!r}")
            swaps.answers[name] += 1

    limits = httpx.Limits(max_connections=num_clients + 2)
    async with httpx.AsyncClient(
        base_url=base_url, timeout=patience.SECONDS, limits=limits
    ) as client:
        await serves(publish())
        clients = [asyncio.create_task(keep_asking(client)) for _ in range(num_clients)]
        for number in range(num_swaps):
            if number % 2:
                swaps.damaged.append(publish(DAMAGES[number // 2 % len(DAMAGES)]))
                await until_async(all_refused)
            else:
                newer = publish()
                await serves(newer)
                await answers(newer)
        swaps.refused = len((await ready())["refused"])
        for task in clients:
            task.cancel()
        ended = await asyncio.gather(*clients, return_exceptions=True)
        swaps.failed += [repr(e) for e in ended if not isinstance(e, asyncio.CancelledError)]
    return swaps
