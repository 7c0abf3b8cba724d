"""DDP adds gradients in the same order in every step, so that resuming is exact with many ranks."""

import json
from pathlib import Path

from tests.support.sdk.scripts import run_ranks
from tests.support.trainer import bucket_orders
from tests.support.trainer.bucket_orders import MODES
from tests.support.trainer.ranks import RankServer

RANKS = 3  # the sum of two is the same in any order
SCRIPT = Path(bucket_orders.__file__)


def differing(server: RankServer, folder: Path, modes: list[str]) -> dict[str, list[int]]:
    """By mode, the steps from which a resumed run ended with other weights."""
    variables = {"TRAINYARD_RUN_DIR": str(folder)}
    codes, out, errors = run_ranks(server, SCRIPT, modes, variables, RANKS)
    assert codes == [0] * RANKS, errors
    found: dict[str, list[int]] = json.loads(out)
    return found


def test_resuming_is_exact_in_every_mode(rank_server: RankServer, tmp_path: Path) -> None:
    found = differing(rank_server, tmp_path, list(MODES))
    assert found == {mode: [] for mode in MODES}


def test_it_is_not_without_fixed_buckets(rank_server: RankServer, tmp_path: Path) -> None:
    """What the test above would see; PyTorch's own buckets change after the first step."""
    modes = ["plain-as-is", "static graph-as-is", "unused parameters-as-is"]
    found = differing(rank_server, tmp_path, modes)
    assert found["plain-as-is"] == [1, 2]
    assert found["static graph-as-is"] != []
    assert found["unused parameters-as-is"] == []
