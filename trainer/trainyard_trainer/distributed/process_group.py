"""The process group: joining it, and the collectives on objects and small tensors."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainyard_trainer.errors import RankLostError, UserError

T = TypeVar("T")

WAIT_LOG_INTERVAL = 5.0  # seconds between messages about missing ranks
JOIN_TIMEOUT = timedelta(minutes=30)


@dataclass
class Group:
    """The process group, as seen by this rank."""

    rank: int
    world_size: int
    device: torch.device
    # For CPU collectives of background threads, separate from those of training.
    background: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints, reports and publishes for all."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.background)
        return values[0]

    def broadcast_tensor(self, tensor: torch.Tensor) -> None:
        """Fill a CPU tensor with rank 0's values."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0, group=self.background)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.background)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average `values` over the ranks, in place."""
        return self.sum(values).div_(self.world_size)

    def run_or_fail_all(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if it raises a UserError on one rank, raise it on all.

        Otherwise the others would wait for that rank in the next collective.
        """
        failure: UserError | None = None
        try:
            result = action()
        except UserError as error:
            failure = error
        failures = self.gather(failure)
        for rank, failed in enumerate(failures):
            if failed is None:
                continue
            if rank > 0 and None in failures:  # for example, a disk that only some nodes have
                failed.args = (f"{failed} (on rank {rank})",)
            raise failed
        return result

    def close(self) -> None:
        """End the threads of `background`: this rank takes part in no other of its collectives.

        One of them may still be about to free the tensors of the last collective, for which it
        needs Python; if Python has begun to finalize by then, it aborts the process.
        """
        background, self.background = self.background, None
        if background is not None and dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # it was destroyed, with all groups
                dist.destroy_process_group(background)


def join(
    device: torch.device,
    on_wait: Callable[[str], None],
    on_store: Callable[[Any, int], None],
) -> Group:
    """Join the process group; `on_wait` is called with a message about missing ranks.

    `on_store(store, rank)` may write to the ranks' store before the other ranks have joined.
    Without torchrun's environment this is a group of one rank.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" not in os.environ:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return Group(0, 1, device, None)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = connect_store(rank, world_size, serve=True)
    on_store(store, rank)
    keys = [f"joined/{other}" for other in range(world_size)]
    store.set(keys[rank], "1")
    deadline = time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while True:
        try:
            store.wait(keys, timedelta(seconds=WAIT_LOG_INTERVAL))
            break
        except dist.DistStoreError:
            missing = [i for i, key in enumerate(keys) if not store.check([key])]
            missing_text = ", ".join(str(i) for i in missing[:8]) + ("…" if missing[8:] else "")
            if time.monotonic() > deadline:
                minutes = JOIN_TIMEOUT.total_seconds() / 60
                raise RankLostError(
                    f"{len(missing)} of {world_size} ranks have not joined within {minutes:.0f}"
                    f" minutes: {missing_text}"
                ) from None
            if missing:
                on_wait(f"waiting for {len(missing)} of {world_size} ranks to join: {missing_text}")
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=device if device.type == "cuda" else None,
    )
    background = dist.new_group(backend="gloo")
    assert isinstance(background, dist.ProcessGroup)  # every rank is a member
    return Group(rank, world_size, device, background)


def store_is_served_by_agent() -> bool:
    """Whether torchrun's agent on node 0 serves the ranks' store; without an agent rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def connect_store(rank: int, world_size: int, serve: bool) -> Any:
    """Connect to the ranks' key-value store; `serve`: start it on rank 0, without an agent.

    torch's own env:// rendezvous makes the same one, but waits for all ranks without a message.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=serve and rank == 0 and not store_is_served_by_agent(),
        timeout=JOIN_TIMEOUT,
        wait_for_workers=False,
    )
    # Each restart by torchrun has its own keys.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"trainyard/{attempt}", store)  # type: ignore[attr-defined]


def leave() -> None:
    """Destroy the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
