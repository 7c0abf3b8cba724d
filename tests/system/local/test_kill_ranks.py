"""A killed rank is named; `tests.soak.kill_ranks` kills many more."""

import random
from itertools import islice
from pathlib import Path

from tests.soak.kill_ranks import Killer

KILLS = 3


def test_every_killed_rank_is_named(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "killed", random.Random(1))
    try:
        kills = (line for number in range(KILLS) for line in killer.kill_until_it_ends(number))
        assert len(list(islice(kills, KILLS))) == KILLS
    finally:
        killer.box.close()
