"""What torch.compile compiles, with every strategy, and what is said about it."""

import json
from pathlib import Path

import pytest

from tests.support.sdk.scripts import run_ranks
from tests.support.trainer import compiled_runs
from tests.support.trainer.ranks import RankServer


def test_blocks_are_compiled_or_it_is_said(rank_server: RankServer, tmp_path: Path) -> None:
    variables = {"TRAINYARD_RUN_DIR": str(tmp_path)}
    codes, out, errors = run_ranks(rank_server, Path(compiled_runs.__file__), [], variables, 2)
    assert codes == [0, 0], errors
    runs, (mixed, nothing, different) = json.loads(out)
    for strategy, (report, compiled, eager) in zip(compiled_runs.STRATEGIES, runs, strict=True):
        assert report == "compiled: 2 blocks", strategy
        assert compiled == pytest.approx(eager, rel=1e-6), strategy
    assert mixed == (
        "compiled: 2 blocks; in several graphs each: 1 block; not compiled: 1 block and the loss"
    )
    assert nothing == (
        "config.compile: PyTorch can't compile any of 1 block and the loss; set compile to false"
    )
    assert different == "compiled: 10 blocks; not compiled: the loss"
