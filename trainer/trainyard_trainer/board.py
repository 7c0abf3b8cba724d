"""The ranks' notice board: what each says of itself, and the verdict on a hang, if there is one."""

import json
from typing import Any

from trainyard_trainer.hangs import Beat, Hang

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
