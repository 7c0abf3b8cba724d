"""What makes a run take less memory: settings that it can change, each with the memory it gives."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from trainyard_trainer.config import processes

if TYPE_CHECKING:
    from trainyard_trainer.estimate.fake_run import Setup

_MOST_RANKS = 4  # as many times as many ranks as there are


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change of settings.

    Attributes:
        change: what to set, for the user.
        total: bytes at the peak with it.
    """

    change: str
    setup: "Setup"
    total: int


Measure = Callable[["Setup"], int]
Choices = Sequence[tuple[str, "Setup"]]  # each takes less memory than the one before


def advise(setup: "Setup", peak: int, limit: int, measure: Measure) -> list[Advice]:
    """Changes that bring the peak of `setup` down, the lowest first; at the end they are combined
    if none of them fits into `limit` bytes."""
    single = [advice for kind in _KINDS if (advice := _best(kind(setup), limit, measure))]
    helpful = sorted((a for a in single if a.total < peak), key=lambda advice: advice.total)
    if len(helpful) > 1 and helpful[0].total > limit:
        helpful.append(_combine(setup, limit, measure, helpful))
    return helpful


def _best(choices: Choices, limit: int, measure: Measure) -> Advice | None:
    """The first of the choices that fits, or else the last; None if there are none."""
    low, high = 0, len(choices) - 1
    if high < 0:
        return None
    totals = {high: measure(choices[high][1])}
    while low < high and totals[max(totals)] <= limit:
        middle = (low + high) // 2
        totals[middle] = measure(choices[middle][1])
        low, high = (low, middle) if totals[middle] <= limit else (middle + 1, high)
    return Advice(*choices[high], totals[high])


def _combine(setup: "Setup", limit: int, measure: Measure, single: list[Advice]) -> Advice:
    """The most helpful changes together, as few as fit."""
    changes: list[str] = []
    combined = single[0]
    for change in single:
        kind = next(kind for kind in _KINDS if change.change in dict(kind(setup)))
        found = _best(kind(combined.setup if changes else setup), limit, measure)
        if found is not None:
            changes.append(found.change)
            combined = Advice(", ".join(changes), found.setup, found.total)
            if found.total <= limit:
                break
    return combined


def _accumulate(setup: "Setup") -> Choices:
    config = setup.config
    of_rank = config.batch_size // setup.world_size
    counts = range(config.gradient_accumulation_steps + 1, of_rank + 1)
    return [
        (
            f"config.gradient_accumulation_steps: {count}",
            _with_config(setup, gradient_accumulation_steps=count),
        )
        for count in counts
        if of_rank % count == 0
    ]


def _checkpoint(setup: "Setup") -> Choices:
    if setup.config.activation_checkpointing:
        return []
    changed = _with_config(setup, activation_checkpointing=True)
    return [("config.activation_checkpointing: true", changed)]


def _lower_precision(setup: "Setup") -> Choices:
    if setup.precision != "fp32":
        return []
    return [("precision: bf16", dataclasses.replace(setup, precision="bf16"))]


def _shard(setup: "Setup") -> Choices:
    return list(_sharded(setup))


def _sharded(setup: "Setup") -> Iterator[tuple[str, "Setup"]]:
    config = setup.config
    if setup.strategy == "fsdp" and config.sharding_strategy != "FULL_SHARD":
        yield (
            "config.sharding_strategy: FULL_SHARD",
            _with_config(setup, sharding_strategy="FULL_SHARD"),
        )
    if setup.strategy == "ddp" and setup.world_size > 1:
        yield "strategy: fsdp", dataclasses.replace(setup, strategy="fsdp")
    for factor in range(2, _MOST_RANKS + 1, 2):
        ranks = setup.world_size * factor
        if config.batch_size % (ranks * config.gradient_accumulation_steps) == 0:
            fsdp = dataclasses.replace(setup, strategy="fsdp", world_size=ranks)
            yield f"strategy: fsdp on {processes(ranks)}", fsdp


_KINDS: tuple[Callable[["Setup"], Choices], ...] = (
    _accumulate,
    _checkpoint,
    _lower_precision,
    _shard,
)


def _with_config(setup: "Setup", **changes: object) -> "Setup":
    return dataclasses.replace(setup, config=setup.config.model_copy(update=changes))
