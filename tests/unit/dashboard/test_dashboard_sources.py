"""What the dashboard reads: histories in bounded memory, runs and studies of this machine."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from tests.support.dashboard.home import driven, record, write_run, write_study
from trainyard_dashboard.board import Board
from trainyard_dashboard.curve import POINTS, Curve
from trainyard_dashboard.history import HistoryFile
from trainyard_dashboard.local_source import LocalSource
from trainyard_dashboard.model import SourceError


def test_a_short_curve_keeps_every_point() -> None:
    curve = Curve()
    added = [(float(x), random.Random(x).random()) for x in range(POINTS)]
    for x, y in added:
        curve.add(x, y)
    assert list(zip(*curve.points(), strict=True)) == added


@pytest.mark.parametrize("count", [501, 1_000, 5_000, 70_001])
def test_a_long_curve_keeps_its_spikes_its_order_and_its_end(count: int) -> None:
    curve = Curve()
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    values[count // 3], values[count // 2] = 50.0, -50.0
    for x, y in enumerate(values):
        curve.add(x, y)
        if x % 997 == 0:
            curve.points()  # a page looks on now and then
    xs, ys = curve.points()
    assert POINTS * 0.45 <= len(xs) <= POINTS
    assert xs == sorted(set(xs))
    assert all(values[int(x)] == y for x, y in zip(xs, ys, strict=True))
    assert (max(ys), min(ys)) == (50.0, -50.0)
    assert (xs[-1], ys[-1]) == (count - 1, values[-1])
    assert curve.count == count


def test_a_history_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=3)
    history = HistoryFile(path)
    assert curve_of(history, "loss")[0] == [10, 20, 30]
    line = json.dumps(record(4)).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert curve_of(history, "loss")[0] == [10, 20, 30]
        file.write(line[20:])
    assert curve_of(history, "loss")[0] == [10, 20, 30, 40]
    found = history.read("a")
    assert [sample.text for sample in found.samples] == ["to be <b>or</b> not"]
    ranks = [curve for curve in found.curves if curve.metric == "rank_step_seconds"]
    assert [(curve.part, curve.y[0]) for curve in ranks] == [("rank 0", 0.01), ("rank 1", 0.011)]


def test_a_resumed_run_begins_anew_with_what_was_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=5)
    history = HistoryFile(path)
    assert len(curve_of(history, "loss")[0]) == 5
    shorter = path.with_suffix(".tmp")
    kept = [record(1), {"step": 10, "event": "resumed", "attempt": 2}, record(2)]
    shorter.write_text("".join(json.dumps(line) + "\n" for line in kept))
    shorter.replace(path)
    assert curve_of(history, "loss")[0] == [10, 20]
    assert history.read("a").resumed_at == [10]
    path.unlink()
    assert history.read("a").curves == []


def test_spoilt_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    spoilt = [b"{", b"[1]", b'{"step": "1", "loss": 1}', b'{"loss": 1}', b"\xff\xfe", b""]
    spoilt += [b"[" * 50_000, b'{"step": 1, "loss": NaN}', b'{"step": 1, "loss": 1e999}']
    spoilt += [b'{"step": 1, "loss": ' + b"9" * 400 + b"}", b'{"step": 1, "loss": true}']
    path.write_bytes(b"\n".join([*spoilt, b'{"step": 7, "loss": 2}', b""]))
    assert curve_of(HistoryFile(path), "loss") == ([7], [2])


def test_a_huge_history_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    block = "".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(6_000))
    path.write_text(block + "x" * (12 << 20) + "\n" + '{"step": 30000, "loss": 2.0}\n')
    tracemalloc.start()
    xs, ys = curve_of(HistoryFile(path), "loss")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (xs[-1], ys[-1]) == (30_000, 2.0)
    assert peak < 8 << 20


def test_runs_are_told_as_they_are(tmp_path: Path) -> None:
    write_run(tmp_path, "done")
    write_run(tmp_path, "going", phase="Running", etaSeconds=60)
    write_run(tmp_path, "killed", phase="Running", etaSeconds=60)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    odd = tmp_path / "runs" / "odd"
    odd.mkdir()
    (odd / "run.json").write_text('{"metadata": {"name": "odd"}, "status": 3}')
    with driven(tmp_path, "going"):
        rows, problems = LocalSource(tmp_path).runs()
    phases = {row.name: row.phase for row in rows}
    assert phases == {"done": "Succeeded", "going": "Running", "killed": "Stopped"}
    (killed,) = [row for row in rows if row.name == "killed"]
    assert killed.eta_seconds is None
    assert "nothing watches it now" in killed.message
    assert len(problems) == 2
    assert all("can't be read" in line and "\n" not in line for line in problems)


def test_a_claims_history_is_found_on_its_volume(tmp_path: Path) -> None:
    history = write_run(tmp_path, "a", points=3)
    run_file = tmp_path / "runs" / "a" / "run.json"
    run = json.loads(run_file.read_text())
    run["spec"]["storage"] = {"claimName": "big"}
    run_file.write_text(json.dumps(run))
    volume = tmp_path / "volumes" / "big" / "a"
    volume.mkdir(parents=True)
    history.rename(volume / "metrics.jsonl")
    found, problems = Board([LocalSource(tmp_path)], None).history(["local/default/a"], ["loss"])
    assert found["local/default/a"].curves[0].count == 3
    assert problems == []


def test_an_empty_home_has_no_runs(tmp_path: Path) -> None:
    source = LocalSource(tmp_path / "nowhere")
    assert (source.runs(), source.studies()) == (([], []), ([], []))


def test_a_home_that_is_no_directory_is_one_line(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    with pytest.raises(SourceError, match=r"file/runs can't be read: Not a directory$"):
        LocalSource(home).runs()
    assert Board([LocalSource(home)], None).runs()[0] == []


def test_studies_are_read_and_what_is_none_is_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    path = write_study(tmp_path, "odd")
    odd = json.loads(path.read_text())
    odd["spec"]["matrix"] = {}
    path.write_text(json.dumps(odd))
    (found,), (problem,) = LocalSource(tmp_path).studies()
    assert found[0] == "local/default/sizes"
    assert "odd/study.json is no ScalingStudy: spec.matrix" in problem


def test_an_unknown_run_is_one_line(tmp_path: Path) -> None:
    found, problems = Board([LocalSource(tmp_path)], None).history(["local/x/../y"], ["loss"])
    assert (found, problems) == ({}, ["there is no run local/x/../y (any more)"])


def curve_of(history: HistoryFile, metric: str) -> tuple[list[float], list[float]]:
    (curve,) = [curve for curve in history.read("run").curves if curve.metric == metric]
    return curve.x, curve.y
