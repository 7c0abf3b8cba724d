"""A study's report: the tables, the notes, the chart, the live display."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainyard_api.run import TrainingRun
from trainyard_api.status import StepSeconds, TrainingRunStatus
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import (
    CellFailure,
    CellResult,
    Machine,
    Measurement,
    ScalingStudyStatus,
)
from trainyard_cli.display import LiveStudyDisplay
from trainyard_cli.study import markdown, terminal
from trainyard_local.display import View
from trainyard_local.store import UserError
from trainyard_local.studies import StudyDir
from trainyard_study.cells import make_cells
from trainyard_study.chart import draw
from trainyard_study.curves import curves
from trainyard_study.report import cell_table, failures
from trainyard_study.results import configurations, summarise

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MATRIX: dict[str, list[Any]] = {
    "precision": ["fp32"],
    "strategy": ["ddp", None],
    "numProcPerNode": [1, 2],
}


def measured(repeat: int, samples: float, mebibytes: int = 100) -> Measurement:
    return Measurement(
        repeat=repeat,
        batch_size=10,
        samples_per_second=samples,
        step_seconds=StepSeconds(mean=10 / samples, p50=10 / samples, p99=20 / samples),
        peak_memory_bytes=mebibytes * 2**20,
        seconds=5,
    )


def cell(processes: int, *samples: float, strategy: str | None = "ddp") -> CellResult:
    runs = [measured(i, rate, 100 + i) for i, rate in enumerate(samples, start=1)]
    return CellResult(
        number=1,
        values={"precision": "fp32", "strategy": strategy, "numProcPerNode": processes},
        label=f"{strategy}, numProcPerNode={processes}",
        processes=processes,
        measurements=runs,
    )


def study(*cells: CellResult, done: bool = True, **spec: Any) -> ScalingStudy:
    """A study of these cells, with all that follows from them."""
    found = ScalingStudy.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "ScalingStudy",
            "metadata": {"name": "demo"},
            "spec": {"template": {"spec": {"recipe": "char-gpt"}}, "matrix": MATRIX} | spec,
        }
    )
    for number, one in enumerate(cells, start=1):
        one.number = number
    groups = configurations(cells)
    summarise(list(cells), groups, found.spec.cost)
    found.status = ScalingStudyStatus(
        command="trainyard study demo.yaml",
        commit="abc",
        start_time=NOW,
        completion_time=NOW if done else None,
        threads_per_process=1,
        machine=Machine(cpu="Abacus", cores=2, system="x", python="3.11", trainyard="0", load=0.5),
        cells=list(cells),
        curves=curves(found.spec, list(cells), groups),
    )
    return found


def test_the_tables_in_markdown() -> None:
    broken = cell(2, strategy=None)
    broken.failure = CellFailure(
        repeat=1, reason="OOMKilled", message="out of memory", log="logs/cell-4-1.log"
    )
    cells = (
        cell(1, 1000, 1200, 1100),
        cell(2, 1650, 1650, 1650),
        cell(1, 9.87654, strategy=None),
        broken,
    )
    cost = {"perProcessHour": 3.6}
    assert markdown(study(*cells, cost=cost, projectTo=[3, 8])).splitlines() == [
        "# demo",
        "",
        "`trainyard study demo.yaml`, commit abc",
        "",
        "Each cell: 3 interleaved runs of 50 steps after 10 of warm-up, 1 thread per process."
        " Figures are medians, with minimum and maximum in parentheses.",
        "In every cell: precision=fp32.",
        "Machine: 2 x Abacus, no GPU, Python 3.11, load 0.5 at the start.",
        "",
        "| strategy | processes | samples/s | p50 ms | p99 ms | peak memory | vs first | speedup"
        " | efficiency | USD / M samples |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| ddp | 1 | 1,100 (1,000–1,200) | 9.09 | 18.2 | 103 MiB | 1.00x | 1.00x | 100% | 0.909 |",
        "| ddp | 2 | 1,650 | 6.06 | 12.1 | 103 MiB | 1.50x | 1.50x | 75% | 1.21 |",
        "| - | 1 | 9.88 | 1,013 | 2,025 | 101 MiB | 0.01x | 1.00x | 100% | 101 |",
        "| - | 2 | failed | - | - | - | - | - | - | - |",
        "",
        "- None, numProcPerNode=2; repeat 1 failed: OOMKilled: out of memory"
        " (log: logs/cell-4-1.log)",
        "",
        "## Scaling",
        "",
        "- ddp: law undecided (linear scaling 6%, Amdahl's law 31%, ring all-reduce 31%,"
        " tree all-reduce 31%) from 1, 2 processes: projections are a weighted average of all.",
        "- the template: no scaling law: at least two numbers of processes are required.",
        "- Where only a range is given, the measured sizes do not determine the projection:"
        " measure a larger size before you pay for it.",
        "",
        "| configuration | processes |  | samples/s | speedup | efficiency | USD / M samples |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
        "| ddp | 1 | measured | 1,100 (1,000–1,200) | 1.00x | 100% | 0.909 |",
        "| ddp | 2 | measured | 1,650 | 1.50x | 75% | 1.21 |",
        "| ddp | 3 | projected | 2,168 (1,847–2,513) | 1.97x | 66% | 1.38 |",
        "| ddp | 8 | projected | 2,274–6,195 | 2.07x–5.63x | 26%–70% | 1.29–3.52 |",
        "| the template | 1 | measured | 9.88 | 1.00x | 100% | 101 |",
    ]


def test_an_unfinished_study_reports_its_progress() -> None:
    half = study(cell(1, 100, 100), cell(2), done=False)
    text = markdown(half)
    assert "Unfinished: 2 runs measured" in text
    assert "| ddp | 2 | not run |" in text
    assert failures(half) == []


def test_a_busy_machine_is_noted() -> None:
    one = study(cell(1, 100))
    assert "busy" not in markdown(one)
    assert one.status.machine
    one.status.machine.load = 1.6
    assert "busy (load 1.6 on 2 cores): measure again on an idle machine." in markdown(one)


def test_a_table_without_measurements_lists_the_cells() -> None:
    table = markdown(study(cell(1), cell(2), done=False))
    assert "| strategy | processes | samples/s |" in table
    assert "| ddp | 1 | not run |" in table
    assert "Scaling" not in table


def test_the_terminal_table_has_the_same_figures_in_a_narrow_layout() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal("demo", cell_table(study(cell(1, 1000, 1200), cell(2)))))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["peak"]
    figures = "1,100 (1,000–1,200) 9.17 18.3 102 MiB 1.00x 100%"
    assert " ".join(lines[3].split()) == f"ddp 1 {figures}"
    assert "not run" in lines[4]


def test_the_chart_is_drawn_even_without_measurements(tmp_path: Path) -> None:
    draw(study(cell(1), cell(2)), tmp_path / "none.png")
    draw(study(cell(1, 5, 6), cell(2)), tmp_path / "one.png")
    draw(study(cell(1, 5, 6), cell(2, 9, 10)), tmp_path / "law.png")
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("none", "one", "law")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3


def test_a_study_is_saved_loaded_and_moved_aside(tmp_path: Path) -> None:
    directory = StudyDir("demo", tmp_path / "demo")
    with directory.locked():
        assert directory.load() is None
        saved = study(cell(1, 5, 6), cell(2, 9, 10))
        directory.save(saved)
        found = directory.load()
        assert found
        assert found.status.cells == saved.status.cells
        second, said = directory.locked(), "demo is already being measured by process"
        with pytest.raises(UserError, match=said), second:
            pass
        old = [directory.move_aside(NOW) for _ in range(2)]
        assert [(path / "study.json").exists() for path in old] == [True, False]
        assert directory.load() is None
    (tmp_path / "demo" / "study.json").write_text("{}")
    with pytest.raises(UserError, match="use --again to re-measure"):
        directory.load()


def test_the_live_display_shows_the_study_and_its_current_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = make_cells(study(cell(1)).spec)
    display = LiveStudyDisplay()
    display.run_started("ddp; repeat 1", 1, 2)
    display.run_finished("ddp; repeat 1", measured(1, 1000))
    assert capsys.readouterr().out == (
        "[1/2] ddp; repeat 1: 1k samples/s, 10.0 ms per step, peak 100 MiB (5s)\n"
    )
    display.run_started("fsdp; repeat 1", 2, 2)
    status = TrainingRunStatus(phase="Running", step=20, total_steps=60, throughput="9k tokens/s")
    run: TrainingRun = cells[1].run.model_copy(update={"status": status})
    display.show(View(run), [])
    Console(width=110).print(display._progress.get_renderable())
    first, second = capsys.readouterr().out.splitlines()
    assert "run 2 of 2" in first
    assert "s left, Ctrl-C stops the study" in first
    assert "fsdp; repeat 1" in second
    assert "9k tokens/s" in second
