"""The ranks' notice board: what each says of itself, and the verdict on a hang, if there is one."""

import json
from typing import Any

import torch.distributed as dist

from trainyard_trainer.distributed.process_group import Group, connect_store
from trainyard_trainer.watchdog.hangs import Beat, Hang

_CLAIM, _VERDICT = "watch/claim", "watch/verdict"


class Board:
    """Notes in the store the ranks have met in (a TCPStore). Any call may block or fail with it."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        # Rank 0 judges all; the others keep an eye on rank 0.
        self._read = [_beat(other) for other in (range(world_size) if rank == 0 else (0,))]

    @staticmethod
    def prepare(store: Any, rank: int) -> None:
        """Put an empty note where others will look, before they can: reading waits for a key."""
        store.multi_set([_beat(rank), _VERDICT], [Beat(rank).to_json(), ""])

    def exchange(self, beat: Beat) -> tuple[list[Beat], Hang | None]:
        """Leave this rank's beat; the newest ones it is to look at, and a verdict."""
        self.leave(beat)
        verdict, *beats = self._store.multi_get([_VERDICT, *self._read])
        hang = Hang(**json.loads(verdict)) if verdict else None
        return [Beat.from_json(text) for text in beats], hang

    def leave(self, beat: Beat) -> None:
        """Leave this rank's beat only."""
        self._store.multi_set([_beat(self._rank)], [beat.to_json()])

    def claim(self) -> bool:
        """Become the one rank that pronounces a verdict; False if another one has."""
        mine = str(self._rank)
        return bool(self._store.compare_set(_CLAIM, "", mine) == mine.encode())

    def pronounce(self, hang: Hang) -> None:
        """Tell all ranks to end."""
        text = {"message": hang.message, "stacks": hang.stacks, "silent": hang.silent}
        self._store.set(_VERDICT, json.dumps(text))


def _beat(rank: int) -> str:
    return f"watch/beat/{rank}"


def open_board(group: Group) -> Board:
    """The ranks' notice board, over a connection of its own: one thread may wait in it."""
    if group.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        Board.prepare(store, 0)
        return Board(store, 0, 1)
    store = connect_store(group.rank, group.world_size, serve=False)
    return Board(store, group.rank, group.world_size)
