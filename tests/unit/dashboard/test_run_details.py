"""The page of a run: what its directory or the API says, bounded, and what is unknown."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.dashboard.home import write_model, write_run
from tests.support.serving.servers import running
from trainyard_api.scores import TaskScores
from trainyard_dashboard.app import create_dashboard_app
from trainyard_dashboard.catalog import Catalog
from trainyard_dashboard.downsampling import DownsampledCurve
from trainyard_dashboard.local_files import LocalFiles
from trainyard_dashboard.local_run import (
    MAX_LOG_BYTES,
    MAX_LOG_LINES,
    find_traces,
    printable,
    read_events,
    read_log,
    read_stored,
)
from trainyard_dashboard.metrics_log import MetricsLog
from trainyard_dashboard.run_details import CUT, MAX_SPEC, Part, RunDetails
from trainyard_dashboard.settings import DashboardSettings
from trainyard_storage.scores import add_scores

RUN = "local/default/bard"
STARTED = "2026-01-01T00:00:05Z"
ATTEMPTS = [
    {
        "number": 1,
        "startTime": STARTED,
        "endTime": "2026-01-01T00:05:00Z",
        "outcome": "Failed",
        "reason": "OOMKilled",
        "message": "rank 3 on bard-1-1: killed: out of memory",
        "pod": "bard-1-1",
        "exitCode": 137,
    },
    {
        "number": 2,
        "startTime": "2026-01-01T00:05:10Z",
        "resumedFromStep": 200,
        "changed": ["config.batch_size: 64 -> 32"],
    },
]


def change(home: Path, name: str, **parts: Any) -> None:
    """Change parts of a stored run: spec, metadata."""
    path = home / "runs" / name / "run.json"
    run = json.loads(path.read_text())
    for part, values in parts.items():
        run[part] |= values
    path.write_text(json.dumps(run))


def details(home: Path, run: str = RUN) -> RunDetails:
    found = Catalog([LocalFiles(home)], None).details(run)
    assert found is not None
    return found


def test_all_that_the_directory_holds_is_told(tmp_path: Path) -> None:
    history = write_run(tmp_path, "bard", attempts=ATTEMPTS, attempt=2)
    with history.open("a") as file:
        file.write(json.dumps({"step": 500, "eval_loss": 1.2, "accuracy": 0.9, "time": 9.0}) + "\n")
    change(tmp_path, "bard", metadata={"annotations": {"trainyard.dev/manifest": "bard.yaml"}})
    directory = tmp_path / "runs" / "bard"
    events = [{"time": STARTED, "type": "Normal", "reason": "Started", "message": "go", "key": "1"}]
    (directory / "events.jsonl").write_text(json.dumps(events[0]) + "\n{\n")
    (directory / "logs").mkdir()
    for name in ("1-0", "2-1", "2-0", "odd"):
        (directory / "logs" / f"{name}.log").write_text(f"output of {name}\n")
    digest = write_model(directory / "data", step=400, metrics={"eval_loss": 1.25})
    trace = directory / "data" / "profiles" / "step-100-102" / "rank-0.json.gz"
    trace.parent.mkdir(parents=True)
    trace.write_bytes(b"")

    found = details(tmp_path)
    assert found.spec == "recipe: char-gpt\n"
    assert found.manifest == "bard.yaml"
    first, second = found.status["attempts"]
    assert (first["message"], first["exitCode"]) == (ATTEMPTS[0]["message"], 137)
    assert second["changed"] == ["config.batch_size: 64 -> 32"]
    assert [event.reason for event in found.events.items] == ["Started"]
    assert found.events.note == f"Left out: 1 broken line of {directory}/events.jsonl."
    assert found.logs.items == ["2-0", "2-1", "1-0"]
    newest = found.evaluations.items[0]
    assert (newest.step, newest.metrics) == (500, {"eval_loss": 1.2, "accuracy": 0.9})
    assert [sample.text for sample in found.samples.items] == ["to be <b>or</b> not"]
    (model,) = found.models.items
    assert (model.step, model.path, model.digest) == (400, "models/step-00000400", digest)
    assert (model.metrics, model.size_bytes) == ({"eval_loss": 1.25}, 5)
    assert found.serve == "trainyard serve bard"
    assert found.traces.items == ["profiles/step-100-102/rank-0.json.gz"]


def test_values_of_environment_variables_are_not_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "bard")
    env = [{"name": "TOKEN", "value": "a-secret"}, {"name": "B", "valueFrom": {"x": 1}}, "odd"]
    containers = [{"name": "trainer", "env": env}]
    change(tmp_path, "bard", spec={"podTemplate": {"spec": {"containers": containers}}})
    spec = details(tmp_path).spec
    assert "TOKEN" in spec
    assert "value: (not shown)" in spec
    assert "a-secret" not in spec


def test_hostile_objects_are_cut_or_named(tmp_path: Path) -> None:
    deep: Any = "end"
    for _ in range(200):
        deep = {"a": deep}
    write_run(tmp_path, "bard", message="m" * 10_000, attempts=[{"number": "x"}], usage="u" * 9_999)
    labels = {f"label-{i}": "v" * 1_000 for i in range(100)}
    change(
        tmp_path,
        "bard",
        spec={"args": ["a" * 50_000] * 300, "deep": deep},
        metadata={"labels": labels},
    )
    found = details(tmp_path)
    assert len(found.spec) <= MAX_SPEC + len(CUT)
    assert found.status == {}
    assert found.warnings == ["its status can't be read by this version of the dashboard"]
    assert len(found.model_dump_json()) < 200_000
    assert (len(found.run.labels), len(found.run.message), len(found.run.usage)) == (16, 500, 500)


def test_the_newest_lines_of_a_log_are_shown_as_a_terminal_would(tmp_path: Path) -> None:
    log = tmp_path / "1-0.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\r\nstep 1\rstep 2\r\n\x1b]0;title\x07bell\x07 \xff\n")
    assert read_log(tmp_path, "1-0").text == "red\nstep 2\nbell \ufffd\n"
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    found = read_log(tmp_path, "1-0")
    assert found.text.endswith("line 99999\n")
    assert found.text.count("\n") == MAX_LOG_LINES
    assert found.note == f"The newest lines; all of them are in {log}."
    log.write_bytes(b"x" * 10 * MAX_LOG_BYTES)
    assert len(read_log(tmp_path, "1-0").text) < MAX_LOG_BYTES
    assert read_log(tmp_path, "3-0").note == "There is no log 3-0."
    assert printable(b"")[0] == ""


def test_a_damaged_model_says_what_is_wrong(tmp_path: Path) -> None:
    write_model(tmp_path, step=400)
    manifest = tmp_path / "models" / "step-00000400" / "manifest.json"
    assert read_stored(tmp_path, "models").items[0].problem == ""
    manifest.write_text(manifest.read_text().replace('"step": 400', '"step": 401'))
    (model,) = read_stored(tmp_path, "models").items
    assert "altered: its own sha256 differs" in model.problem
    (tmp_path / "models" / "step-00000500").mkdir()  # without a manifest: incomplete
    assert len(read_stored(tmp_path, "models").items) == 1


def test_only_the_newest_of_many_are_listed(tmp_path: Path) -> None:
    for step in range(1, 33):
        write_model(tmp_path, step=step)
    found = read_stored(tmp_path, "models")
    assert [item.step for item in found.items[:2]] == [32, 31]
    assert found.note == f"The newest 30; 2 more are in {tmp_path}/models."
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps({"message": str(i)}) + "\n" for i in range(150)))
    part = read_events(events)
    assert (part.items[0].message, len(part.items)) == ("149", 100)
    assert part.note == "The newest 100 events."
    assert find_traces(tmp_path).items == []


def test_without_manifests_the_status_says_what_is_stored(tmp_path: Path) -> None:
    checkpoint = {"step": 7, "digest": "", "time": STARTED}
    model = {"step": 9, "digest": "sha256:ab", "path": "models/step-00000009", "evalLoss": 2.0}
    write_run(tmp_path, "bard", lastCheckpoint=checkpoint, model=model, bestModel=model)
    found = details(tmp_path)
    assert [(one.step, one.digest) for one in found.checkpoints.items] == [(7, "")]
    assert [(one.step, one.metrics) for one in found.models.items] == [(9, {"eval_loss": 2.0})]


def test_a_page_says_what_of_the_log_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path, "bard", points=3)
    assert details(tmp_path).warnings == []
    with path.open("a") as file:
        file.write('{"step": 40, "lo\n[1]\n{"loss": 1}\n{"step": 50, "loss": NaN}\n')
    broken, not_finite = details(tmp_path).warnings
    assert broken.startswith("3 lines of metrics.jsonl are left out")
    assert not_finite.startswith("loss is not a finite number in 1 of its records")


def test_the_scores_of_its_models_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "bard")
    data = tmp_path / "runs" / "bard" / "data"
    assert details(tmp_path).scores == Part()
    digests = {step: write_model(data, step) for step in (400, 500)}
    time = datetime(2026, 1, 1, tzinfo=UTC)
    for step, accuracy in ((400, 0.5), (500, float("nan"))):
        metrics = {"acc": accuracy, "ppl": 3.0}
        part = TaskScores(metrics=metrics, errors={"acc": 0.25}, samples=10, time=time)
        part.complete = step == 400
        model = data / "models" / f"step-{step:08}"
        add_scores(model, step, digests[step], "lm-eval 0.4", {"news": part})
    (data / "scores" / "step-00000300.json").write_text("{")
    found = details(tmp_path).scores
    rows = [(one.step, one.metric, one.value, one.error, one.complete) for one in found.items]
    assert rows == [
        (500, "ppl", 3.0, None, False),
        (400, "acc", 0.5, 0.25, True),
        (400, "ppl", 3.0, None, True),
    ]
    (newest, *_) = found.items
    assert (newest.task, newest.samples, newest.digest) == ("news", 10, digests[500])
    assert found.note == f"Left out: 1 broken file of {data}/scores."


def test_a_page_makes_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "bard", points=3)

    def points(curve: DownsampledCurve) -> None:
        pytest.fail("a run's page shows no curve")

    monkeypatch.setattr(DownsampledCurve, "points", points)
    assert [one.step for one in details(tmp_path).evaluations.items] == [30]


def test_the_newest_20_evaluations_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "eval_loss": 1.0, "loss": "text"} for step in range(25)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = MetricsLog(path).read(RUN, ()).evaluations
    assert [one.step for one in found] == list(range(5, 25))
    assert found[0].metrics == {"eval_loss": 1.0}


def test_the_endpoints_answer_and_refuse_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "bard")
    logs = tmp_path / "runs" / "bard" / "logs"
    logs.mkdir()
    (logs / "1-0.log").write_text("hello\n")
    with running(create_dashboard_app(DashboardSettings(home=str(tmp_path)))) as client:

        def get(address: str, **parameters: str) -> httpx.Response:
            return client.get(address, params=parameters)

        assert get("/api/run", run=RUN).json()["run"]["name"] == "bard"
        tag = get("/api/run", run=RUN).headers["etag"]
        again = client.get("/api/run", params={"run": RUN}, headers={"if-none-match": tag})
        assert again.status_code == 304
        assert get("/api/log", run=RUN, name="1-0").json()["text"] == "hello\n"
        assert get("/api/log", run=RUN, name="../../run").status_code == 422
        for path, more in (("/api/run", {}), ("/api/log", {"name": "1-0"})):
            answer = get(path, run="local/default/nobody", **more)
            said = "run local/default/nobody does not exist (any more)"
            assert (answer.status_code, answer.json()["detail"]) == (404, said)
        hostile = get("/api/trace", run=RUN, path="../run.json")
        assert hostile.status_code == 404


@pytest.mark.parametrize("name", ["run.json", "data/metrics.jsonl"])
def test_an_unreadable_run_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, "bard")
    with running(create_dashboard_app(DashboardSettings(home=str(tmp_path)))) as client:
        assert client.get("/api/runs").status_code == 200  # which knows the run from now on
        path = tmp_path / "runs" / "bard" / name
        path.unlink()
        path.mkdir()
        answer = client.get("/api/run", params={"run": RUN})
        assert answer.status_code == 502
        assert answer.json()["detail"].startswith("the run bard can't be read: ")
