"""Heartbeats and the verdict on a hang, exchanged through the ranks' TCPStore."""

import json
from typing import Any

import torch.distributed as dist

from trainyard_trainer.distributed.process_group import Group, connect_store
from trainyard_trainer.watchdog.hangs import Hang, Heartbeat

_CLAIM, _VERDICT = "watch/claim", "watch/verdict"


class Board:
    """Keys in the ranks' store. Any call may block or fail if the store does."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        # Rank 0 checks all ranks; the others check rank 0.
        self._read = [_beat_key(other) for other in (range(world_size) if rank == 0 else (0,))]

    @staticmethod
    def initialise(store: Any, rank: int) -> None:
        """Set this rank's keys before the others join: reading a missing key blocks."""
        store.multi_set([_beat_key(rank), _VERDICT], [Heartbeat(rank).to_json(), ""])

    def exchange(self, beat: Heartbeat) -> tuple[list[Heartbeat], Hang | None]:
        """Publish this rank's heartbeat; the newest ones that it checks, and the verdict."""
        self.publish(beat)
        verdict, *beats = self._store.multi_get([_VERDICT, *self._read])
        hang = Hang(**json.loads(verdict)) if verdict else None
        return [Heartbeat.from_json(text) for text in beats], hang

    def publish(self, beat: Heartbeat) -> None:
        """Publish this rank's heartbeat."""
        self._store.multi_set([_beat_key(self._rank)], [beat.to_json()])

    def claim(self) -> bool:
        """Become the rank that publishes the verdict; False if another rank has."""
        own = str(self._rank)
        return bool(self._store.compare_set(_CLAIM, "", own) == own.encode())

    def publish_verdict(self, hang: Hang) -> None:
        """Make all ranks exit."""
        text = {"message": hang.message, "stacks": hang.stacks, "silent": hang.silent}
        self._store.set(_VERDICT, json.dumps(text))


def _beat_key(rank: int) -> str:
    return f"watch/beat/{rank}"


def open_board(group: Group) -> Board:
    """Connect to the ranks' store; a separate connection, on which one thread may block."""
    if group.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        Board.initialise(store, 0)
        return Board(store, 0, 1)
    store = connect_store(group.rank, group.world_size, serve=False)
    return Board(store, group.rank, group.world_size)
