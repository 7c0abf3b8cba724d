"""The random generators that dropout uses: their states in checkpoints, and new ones."""

import numpy as np
import torch
from torch import Tensor

from trainyard_trainer.distributed.process_group import Group


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators, by kind of device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def prefix(rank: int) -> str:
    """With it begin the names of a rank's states in checkpoints; the kind of device follows."""
    return f"rng.{rank}."


def own_random_state(group: Group) -> dict[str, Tensor]:
    """This rank's states, by the names they have in checkpoints."""
    return {prefix(group.rank) + kind: t for kind, t in random_state(group.device).items()}


def set_random_state(states: dict[str, Tensor], group: Group) -> bool:
    """Set this rank's generators to its states in a checkpoint.

    False if it was saved on another kind of device: a state fits no other, and nothing is set.
    """
    if {name for name in states if name.startswith(prefix(group.rank))} != set(
        own_random_state(group)
    ):
        return False
    torch.set_rng_state(states[prefix(group.rank) + "cpu"])
    if group.device.type == "cuda":
        torch.cuda.set_rng_state(states[prefix(group.rank) + "cuda"], group.device)
    return True


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed the generators, differently for every rank and starting step."""
    seeds = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(seeds[0]))
