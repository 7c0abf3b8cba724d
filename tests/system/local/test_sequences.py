"""Runs disturbed in random ways end as the undisturbed one; `tests.soak.sequences` does more."""

import random
from pathlib import Path

import pytest

from tests.soak.sequences import Sequence, reference


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return reference(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize("number", range(3))
def test_a_disturbed_run_ends_as_the_undisturbed_one(
    number: int, tmp_path: Path, expected: dict[str, str]
) -> None:
    sequence = Sequence(tmp_path / "run", random.Random(f"1-{number}"))
    try:
        story = sequence.play()
        assert sequence.result() == expected, story
    finally:
        sequence.box.close()
