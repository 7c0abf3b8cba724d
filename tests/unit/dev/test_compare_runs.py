"""Two runs are compared float by float, and what can't be compared is one line."""

import json
from pathlib import Path

import pytest

from dev.compare_runs import Missing, compare, main


def write_run(directory: Path, losses: dict[int, float], speed: float = 100.0) -> Path:
    lines: list[dict[str, float | str]] = [{"step": 0, "event": "started"}]
    for step, loss in losses.items():
        lines.append({"step": step, "loss": loss, "samples_per_second": speed})
        lines.append({"step": step, "eval_loss": loss + 0.1})
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return directory


def test_the_same_losses_are_the_same(tmp_path: Path) -> None:
    losses = {step: 3 / step for step in range(10, 1010, 10)}
    before = write_run(tmp_path / "a", losses)
    after = write_run(tmp_path / "b", losses, speed=110.0)
    text, same = compare(before, after)
    assert same
    assert "All 200 losses are the same, bit for bit." in text
    assert "100.0 before, 110.0 after (+10.0%)" in text
    assert len(text.splitlines()) < 20
    assert "| 1000 | loss | 0.003000 | 0.003000 | +0.00e+00 |" in text
    assert main([str(before), str(after)]) == 0


def test_the_smallest_difference_is_a_difference(tmp_path: Path) -> None:
    before = write_run(tmp_path / "a", {10: 2.5, 20: 1.5, 30: 1.25})
    after = write_run(tmp_path / "b", {10: 2.5, 20: 1.5 + 2**-40, 30: 1.25})
    text, same = compare(before, after)
    assert not same
    assert "2 of 6 losses differ, first at step 20, by at most 9.09e-13." in text
    assert main([str(before), str(after)]) == 1


def test_runs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    before = write_run(tmp_path / "a", {10: 2.5, 20: 1.5})
    after = write_run(tmp_path / "b", {10: 2.5})
    with pytest.raises(Missing, match="only one run has eval_loss of step 20"):
        compare(before, after)


def test_what_is_not_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no"), str(tmp_path / "such")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
