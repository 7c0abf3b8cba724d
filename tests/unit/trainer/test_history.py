"""metrics.jsonl across restarts, and the loss curve."""

import json
import resource
import signal
from pathlib import Path

import pytest

from trainyard_trainer.reporting.history import HISTORY_FILE, PICTURE_FILE, History, read_history
from trainyard_trainer.reporting.plot import draw


def test_a_resumed_run_drops_later_records(tmp_path: Path) -> None:
    first = History(tmp_path, "r", None, 1)
    for step in (10, 20, 30):
        first.add(step=step, loss=1.0 / step)
    with (tmp_path / HISTORY_FILE).open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    second = History(tmp_path, "r", 20, 2)
    first.add(step=50, loss=0.0)  # the old attempt, still alive somewhere
    second.add(step=30, loss=0.5)
    records = read_history(tmp_path / HISTORY_FILE)
    assert [(r["step"], r.get("loss"), r.get("event")) for r in records] == [
        (0, None, "started"),
        (10, 0.1, None),
        (20, 0.05, None),
        (20, None, "resumed"),
        (30, 0.5, None),
    ]


def test_a_run_that_does_not_resume_starts_a_new_history(tmp_path: Path) -> None:
    History(tmp_path, "r", None, 1).add(step=10, loss=1.0)
    History(tmp_path, "r", None, 2).add(step=1, loss=2.0)
    records = read_history(tmp_path / HISTORY_FILE)
    assert [(r["step"], r["attempt"]) for r in records[:1]] == [(0, 2)]
    assert [r["step"] for r in records[1:]] == [1]


def test_the_runtime_is_that_of_all_attempts(tmp_path: Path) -> None:
    first = History(tmp_path, "r", None, 1)
    began = read_history(first.path)[0]["time"]
    first.add(step=10, loss=1.0, time=began + 1000)
    first.add(step=20, loss=1.0, time=began + 2000)
    second = History(tmp_path, "r", 10, 2)
    second.end(20, "FINISHED")
    end = read_history(second.path)[-1]
    assert (end["event"], end["status"]) == ("ended", "FINISHED")
    # The step lost with the first attempt isn't counted, nor is the time between the two.
    assert 1000 <= end["train_runtime"] < 2000


def test_a_full_disk_damages_one_line_only(tmp_path: Path) -> None:
    history = History(tmp_path, "r", None, 1)
    history.add(step=5, text=1_000_000 * " ")  # beyond what anything else here writes
    size = history.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        history.add(step=10, loss=1.0)
        history.add(step=20, loss=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    history.add(step=30, loss=1.0)
    assert [r["step"] for r in read_history(history.path)] == [0, 5, 30]


def test_a_history_that_cannot_be_written_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / HISTORY_FILE).mkdir()
    history = History(tmp_path, "r", None, 1)
    history.add(step=1)
    history.add(step=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "training continues without it" in lines[0]


@pytest.mark.parametrize("empty", [False, True])
def test_the_loss_curve_is_drawn(tmp_path: Path, empty: bool) -> None:
    records: list[dict[str, object]] = (
        [{"step": s, "loss": 5.0 / s} for s in range(1, 50)] if not empty else []
    )
    if not empty:
        records += [{"step": 25, "eval_loss": 0.4}, {"step": 20, "event": "resumed"}]
    (tmp_path / HISTORY_FILE).write_text("".join(json.dumps(r) + "\n" for r in records))
    draw(tmp_path, "r")
    assert (tmp_path / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == [PICTURE_FILE, HISTORY_FILE]
