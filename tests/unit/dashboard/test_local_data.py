"""The catalog and its local data source: runs, studies, and curves in bounded memory."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard.home import driven, record, write_run, write_study
from trainyard_dashboard.catalog import Catalog, DataSourceError
from trainyard_dashboard.downsampling import MAX_POINTS, DownsampledCurve
from trainyard_dashboard.history import Known
from trainyard_dashboard.local_files import LocalFiles
from trainyard_dashboard.metrics_log import MAX_CURVES, MetricsLog


def test_a_short_curve_keeps_every_point() -> None:
    curve = DownsampledCurve()
    added = [(float(x), random.Random(x).random()) for x in range(MAX_POINTS)]
    for x, y in added:
        curve.add(x, y)
    assert list(zip(*curve.points(), strict=True)) == added


@pytest.mark.parametrize("count", [501, 1_000, 5_000, 70_001])
def test_a_long_curve_keeps_its_spikes_its_order_and_its_last_point(count: int) -> None:
    curve = DownsampledCurve()
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    values[count // 3], values[count // 2] = 50.0, -50.0
    for x, y in enumerate(values):
        curve.add(x, y)
        if x % 997 == 0:
            curve.points()  # as an open page does
    xs, ys = curve.points()
    assert MAX_POINTS * 0.45 <= len(xs) <= MAX_POINTS
    assert xs == sorted(set(xs))
    assert all(values[int(x)] == y for x, y in zip(xs, ys, strict=True))
    assert (max(ys), min(ys)) == (50.0, -50.0)
    assert (xs[-1], ys[-1]) == (count - 1, values[-1])
    assert curve.count == count


def test_appended_lines_are_read_once_they_are_complete(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=3)
    log = MetricsLog(path)
    assert curve_of(log, "loss")[0] == [10, 20, 30]
    line = json.dumps(record(4)).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert curve_of(log, "loss")[0] == [10, 20, 30]
        file.write(line[20:])
    assert curve_of(log, "loss")[0] == [10, 20, 30, 40]
    found = log.read("a", ["rank_step_seconds"])
    assert [sample.text for sample in found.samples] == ["to be <b>or</b> not"]
    assert [(curve.part, curve.y[0]) for curve in found.curves] == [
        ("rank 0", 0.01),
        ("rank 1", 0.011),
    ]


def test_a_replaced_log_is_read_from_its_start(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=5)
    log = MetricsLog(path)
    assert len(curve_of(log, "loss")[0]) == 5
    shorter = path.with_suffix(".tmp")
    kept = [record(1), {"step": 10, "event": "resumed", "attempt": 2}, record(2)]
    shorter.write_text("".join(json.dumps(line) + "\n" for line in kept))
    shorter.replace(path)
    assert curve_of(log, "loss")[0] == [10, 20]
    assert log.read("a", ()).resumed_at == [10]
    path.unlink()
    assert log.read("a", ["loss"]).curves == []


def test_a_log_that_is_replaced_while_it_is_opened_is_not_mixed_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, "a", points=5)
    new = path.with_suffix(".tmp")
    new.write_text("".join(json.dumps(record(i)) + "\n" for i in range(101, 140)))
    open_path = Path.open

    def opened_just_before(self: Path, *arguments: Any, **options: Any) -> Any:
        file = open_path(self, *arguments, **options)
        if self == path and new.exists():
            new.replace(path)
        return file

    monkeypatch.setattr(Path, "open", opened_just_before)
    log = MetricsLog(path)
    assert curve_of(log, "loss")[0] == [10, 20, 30, 40, 50]
    assert curve_of(log, "loss")[0] == [10 * i for i in range(101, 140)]
    assert log.read("a", ()).problems == []


def test_invalid_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    invalid = [b"{", b"[1]", b'{"step": "1", "loss": 1}', b'{"loss": 1}', b"\xff\xfe"]
    invalid += [b"[" * 50_000]
    odd = [b"", b'{"step": 1, "loss": true}', b'{"step": 1, "note": "text"}']
    path.write_bytes(b"\n".join([b"", *invalid, *odd, b'{"step": 7, "loss": 2}', b""]))
    log = MetricsLog(path)
    assert curve_of(log, "loss") == ([7], [2])
    assert log.read("a", ()).problems == [
        "6 lines of metrics.jsonl are left out: they are not records with a step (the first is"
        " line 2)"
    ]
    path.write_bytes(b'{"step": 7, "loss": 2}\n{\n')
    assert log.read("a", ()).problems == [
        "line 2 of metrics.jsonl is left out: it is not a record with a step"
    ]


def test_half_a_surrogate_pair_in_a_line_is_replaced(tmp_path: Path) -> None:
    """It is valid JSON, but no answer can hold it: one run's would hide those of all others."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 7, "loss": 2, "\\ud800": 1, "\\ud83d\\ude00": 3, "sample": "\\udc00"}\n'
    )
    log = MetricsLog(path)
    assert [sample.text for sample in log.read("a", ()).samples] == ["?"]
    assert curve_of(log, "?") == ([7], [1])
    assert curve_of(log, "\U0001f600") == ([7], [3])


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = ["NaN", "1e999", "9" * 400, "2"]
    lines = [f'{{"step": {i}, "loss": {value}}}\n' for i, value in enumerate(values, start=4)]
    path.write_text("".join(lines))
    log = MetricsLog(path)
    assert curve_of(log, "loss") == ([7], [2])
    assert log.read("a", ()).problems == [
        "loss is not a finite number in 3 of its records (first at step 4): no point is drawn there"
    ]


def test_names_in_the_problems_of_a_log_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    many = {f"{i:03}" + "x" * 1000: float("nan") for i in range(100)}
    more = {f"{i:03}" + "y" * 1000: 1.0 for i in range(MAX_CURVES + 100)}
    path.write_text(json.dumps({"step": 1, **many}) + "\n" + json.dumps({"step": 2, **more}) + "\n")
    found = MetricsLog(path).read("a", ())
    assert len(found.problems) == 33  # 32 of metrics that are not finite, and one of curves
    assert max(map(len, found.problems)) < 1000
    assert found.problems[-1].startswith("only the first 160 curves are kept: 160yyy")
    assert len(found.evaluation) == MAX_CURVES
    assert max(map(len, found.metrics)) == 200


def test_the_problems_of_a_log_name_its_run(tmp_path: Path) -> None:
    write_run(tmp_path, "a", points=3).write_text("{\n")
    _, problems = Catalog([LocalFiles(tmp_path)], None).history(["local/default/a"], ["loss"])
    assert problems == ["a: line 1 of metrics.jsonl is left out: it is not a record with a step"]


def test_every_metric_is_named_and_those_of_evaluations_apart(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=3)
    with path.open("a") as file:
        file.write(json.dumps({"step": 30, "eval_loss": 1.5, "accuracy": 0.5, "time": 2}) + "\n")
        file.write(json.dumps({"step": 30, "event": "ended", "train_runtime": 9.0}) + "\n")
    found = MetricsLog(path).read("a", ["accuracy"])
    assert [(curve.metric, curve.y) for curve in found.curves] == [("accuracy", [0.5])]
    assert found.evaluation == ["eval_loss", "accuracy"]
    assert {"loss", "grad_norm", "accuracy"} <= set(found.metrics)
    assert not {"train_runtime", "attempt", "time", "seed"} & set(found.metrics)


def test_steps_have_a_place_on_the_axes_of_time_samples_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rates = {"samples_per_second": 64.0, "tokens_per_second": 640.0}
    records: list[dict[str, Any]] = [
        {"step": 0, "event": "started", "time": 100.0, "config": {"batch_size": 32}},
        {"step": 10, "time": 105.0, "loss": 2.0, **rates},
        {"step": 10, "event": "resumed", "time": 200.0, "config": {"batch_size": 16}},
        {"step": 20, "time": 205.0, "loss": 1.0, **rates},
        {"step": 20, "time": 206.0, "eval_loss": 1.0},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    log = MetricsLog(path)
    assert curve_of(log, "axis:seconds") == ([0, 10, 10, 20, 20], [0, 5, 100, 105, 106])
    assert curve_of(log, "axis:samples") == ([0, 10, 20], [0, 320, 480])
    assert curve_of(log, "axis:tokens") == ([0, 10, 20], [0, 3200, 4800])
    assert curve_of(log, "step_seconds") == ([10, 20], [0.5, 0.25])


def test_only_what_is_new_is_returned_to_a_caller_that_has_the_rest(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", points=3)
    log = MetricsLog(path)
    known = Known(log.read("a", ()).version, 30)
    with path.open("a") as file:
        file.write(json.dumps({"step": 30, "eval_loss": 1.0}) + "\n")
        file.write(json.dumps(record(4)) + "\n")
    found = log.read("a", ["loss", "eval_loss"], known)
    new = {curve.metric: (curve.x, curve.since) for curve in found.curves}
    assert new == {"loss": ([30, 40], 30), "eval_loss": ([30, 30], 30)}
    assert found.version == known.version
    path.with_suffix(".tmp").write_text(json.dumps(record(1)) + "\n")
    path.with_suffix(".tmp").replace(path)
    replaced = log.read("a", ["loss"], known)
    assert [(curve.x, curve.since) for curve in replaced.curves] == [([10], None)]
    assert replaced.version != known.version


def test_a_finished_run_has_the_mean_throughput_of_its_last_attempt(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "batchSize": 32,
        "tokensPerBatch": 2048,
        "stepSeconds": {"mean": 0.5},
    }
    write_run(tmp_path, "done", **figures)
    write_run(tmp_path, "suspended", phase="Suspended", **figures)
    write_run(tmp_path, "waiting", phase="Pending", **figures)
    write_run(tmp_path, "hostile", **figures | {"stepSeconds": {"mean": 0}})
    with driven(tmp_path, "waiting"):
        runs, _ = LocalFiles(tmp_path).runs()
    rates = {run.name: (run.samples_per_second, run.tokens_per_second) for run in runs}
    assert rates == {
        "done": (64.0, 4096.0),
        "suspended": (64.0, 4096.0),
        "waiting": (None, None),
        "hostile": (None, None),
    }


def test_a_large_log_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    block = "".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(6_000))
    path.write_text(block + "x" * (12 << 20) + "\n" + '{"step": 30000, "loss": 2.0}\n')
    tracemalloc.start()
    xs, ys = curve_of(MetricsLog(path), "loss")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (xs[-1], ys[-1]) == (30_000, 2.0)
    assert peak < 8 << 20


def test_a_run_without_a_process_is_stopped_and_invalid_files_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path, "done")
    write_run(tmp_path, "going", phase="Running", etaSeconds=60)
    write_run(tmp_path, "killed", phase="Running", etaSeconds=60)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    odd = tmp_path / "runs" / "odd"
    odd.mkdir()
    (odd / "run.json").write_text('{"metadata": {"name": "odd"}, "status": 3}')
    with driven(tmp_path, "going"):
        rows, problems = LocalFiles(tmp_path).runs()
    phases = {row.name: row.phase for row in rows}
    assert phases == {"done": "Succeeded", "going": "Running", "killed": "Stopped"}
    (killed,) = [row for row in rows if row.name == "killed"]
    assert killed.eta_seconds is None
    assert "its process is gone" in killed.message
    assert len(problems) == 2
    assert all("can't be read" in line and "\n" not in line for line in problems)


def test_the_log_of_a_run_with_a_claim_is_read_from_its_volume(tmp_path: Path) -> None:
    history = write_run(tmp_path, "a", points=3)
    run_file = tmp_path / "runs" / "a" / "run.json"
    run = json.loads(run_file.read_text())
    run["spec"]["storage"] = {"claimName": "big"}
    run_file.write_text(json.dumps(run))
    volume = tmp_path / "volumes" / "big" / "a"
    volume.mkdir(parents=True)
    history.rename(volume / "metrics.jsonl")
    found, problems = Catalog([LocalFiles(tmp_path)], None).history(["local/default/a"], ["loss"])
    assert found["local/default/a"].curves[0].count == 3
    assert problems == []


def test_an_empty_home_has_no_runs(tmp_path: Path) -> None:
    source = LocalFiles(tmp_path / "nowhere")
    assert (source.runs(), source.studies()) == (([], []), ([], []))


def test_a_home_that_is_not_a_directory_is_a_one_line_error(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    with pytest.raises(DataSourceError, match=r"file/runs can't be read: Not a directory$"):
        LocalFiles(home).runs()
    assert Catalog([LocalFiles(home)], None).runs()[0] == []


def test_valid_studies_are_read_and_an_invalid_one_is_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    path = write_study(tmp_path, "odd")
    odd = json.loads(path.read_text())
    odd["spec"]["matrix"] = {}
    path.write_text(json.dumps(odd))
    (found,), (problem,) = LocalFiles(tmp_path).studies()
    assert found[0] == "local/default/sizes"
    assert "odd/study.json is not a valid ScalingStudy: spec.matrix" in problem


def test_a_study_of_a_newer_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    newer = json.loads(path.read_text())
    newer["spec"]["novelty"] = newer["status"]["novelty"] = 1
    newer["status"]["phase"] = "Paused"
    path.write_text(json.dumps(newer))
    ((_, study),), problems = LocalFiles(tmp_path).studies()
    assert problems == []
    assert study.status.cells[0].measurements


def test_an_unknown_run_is_a_one_line_error(tmp_path: Path) -> None:
    found, problems = Catalog([LocalFiles(tmp_path)], None).history(["local/x/../y"], ["loss"])
    assert (found, problems) == ({}, ["run local/x/../y does not exist (any more)"])


def curve_of(log: MetricsLog, metric: str) -> tuple[list[float], list[float]]:
    (curve,) = log.read("run", [metric]).curves
    return curve.x, curve.y
