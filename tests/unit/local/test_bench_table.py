"""What follows from a bench's measurements, and how the table tells it."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainyard_api.bench import BenchSpec
from trainyard_api.bench_report import BenchReport, CellFailure, CellResult, Machine, Measurement
from trainyard_api.progress import ProgressReport, StepSeconds
from trainyard_api.status import TrainingRunStatus
from trainyard_operator.bench.cells import make_cells
from trainyard_operator.bench.chart import draw
from trainyard_operator.bench.display import LiveBenchDisplay
from trainyard_operator.bench.results import measurement, summarise
from trainyard_operator.bench.table import failures, markdown, terminal
from trainyard_operator.local.display import View

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def measured(repeat: int, samples: float, mebibytes: int = 100) -> Measurement:
    return Measurement(
        repeat=repeat,
        batch_size=10,
        samples_per_second=samples,
        step_seconds=StepSeconds(mean=10 / samples, p50=10 / samples, p99=20 / samples),
        peak_memory_bytes=mebibytes * 2**20,
        seconds=5,
    )


def cell(processes: int, *samples: float, **values: Any) -> CellResult:
    runs = [measured(i, rate, 100 + i) for i, rate in enumerate(samples, start=1)]
    return CellResult(
        values={**values, "numProcPerNode": processes}, processes=processes, measurements=runs
    )


def report(*cells: CellResult, done: bool = True) -> BenchReport:
    summarise(list(cells))
    spec = {
        "template": {"spec": {}},
        "matrix": {"precision": ["fp32"], "strategy": ["ddp", None], "numProcPerNode": [1, 2]},
        "repeats": 3,
    }
    machine = Machine(cpu="Abacus", cores=2, system="x", python="3.11", trainyard="0", load=0.5)
    return BenchReport(
        name="demo",
        command="trainyard bench demo.yaml",
        commit="abc",
        start_time=NOW,
        end_time=NOW if done else None,
        threads_per_process="1",
        machine=machine,
        spec=BenchSpec.model_validate(spec),
        cells=list(cells),
    )


def test_throughput_is_the_batch_over_the_mean_step_time() -> None:
    told = ProgressReport(
        run="x",
        attempt=1,
        phase="finished",
        ranks_joined=2,
        world_size=2,
        batch_size=32,
        samples_per_second=1000,  # of the last window only
        tokens_per_second=64_000,
        step_seconds=StepSeconds(mean=0.5, p50=0.4, p99=0.9),
        time=NOW,
    )
    found = measurement(told, repeat=2, seconds=9)
    assert found is not None
    assert (found.samples_per_second, found.tokens_per_second) == (64, 64 * 64)
    assert measurement(told.model_copy(update={"step_seconds": None}), 1, 9) is None


def test_figures_are_medians_and_memory_the_most_of_any_run() -> None:
    one = cell(1, 100, 300, 110)
    summarise([one])
    assert one.samples_per_second is not None
    assert one.step_seconds_p99 is not None
    assert tuple(one.samples_per_second.model_dump().values()) == (110, 100, 300)
    assert one.step_seconds_p99.max == pytest.approx(0.2)
    assert one.peak_memory_bytes == 103 * 2**20


def test_efficiency_compares_with_the_same_configuration_on_one_process() -> None:
    ddp, ddp2 = cell(1, 100, strategy="ddp"), cell(2, 180, strategy="ddp")
    fsdp2, fsdp = cell(2, 120, strategy="fsdp"), cell(1, 80, strategy="fsdp")
    summarise([ddp, ddp2, fsdp2, fsdp])
    assert [c.efficiency for c in (ddp, ddp2, fsdp2, fsdp)] == [1, 0.9, 0.75, 1]
    assert [c.speedup for c in (ddp, ddp2, fsdp2, fsdp)] == [1, 1.8, 1.2, 0.8]
    summarise([ddp2, fsdp2])
    assert [c.efficiency for c in (ddp2, fsdp2)] == [None, None]


def test_without_the_first_cell_there_is_nothing_to_compare_with() -> None:
    failed, other = cell(1, strategy="ddp"), cell(1, 50, strategy="fsdp")
    summarise([failed, other])
    assert (failed.samples_per_second, other.speedup, other.efficiency) == (None, None, 1)


def test_the_table_in_markdown() -> None:
    broken = cell(2, strategy=None)
    broken.failure = CellFailure(
        repeat=1, reason="OOMKilled", message="out of memory", log="logs/cell-4-1.log"
    )
    cells = (
        cell(1, 1000, 1200, 1100, strategy="ddp"),
        cell(2, 2000, 2000, 2000, strategy="ddp"),
        cell(1, 9.87654, strategy=None),
        broken,
    )
    assert markdown(report(*cells)).splitlines() == [
        "# demo",
        "",
        "`trainyard bench demo.yaml`, commit abc",
        "",
        "Each cell: 3 interleaved runs of 50 steps after 10 of warm-up, 1 thread per process."
        " Figures are medians, in brackets the least and the most.",
        "In every cell: precision=fp32.",
        "Machine: 2 x Abacus, no GPU, Python 3.11, load 0.5 when it began.",
        "",
        "| strategy | numProcPerNode | samples/s | vs first | efficiency | step ms | p99 ms"
        " | peak memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| ddp | 1 | 1,100 (1,000–1,200) | 1.00x | 100% | 9.09 | 18.2 | 103 MiB |",
        "| ddp | 2 | 2,000 | 1.82x | 91% | 5.00 | 10.0 | 103 MiB |",
        "| - | 1 | 9.88 | 0.01x | 100% | 1,013 | 2,025 | 101 MiB |",
        "| - | 2 | failed | - | - | - | - | - |",
        "",
        "- numProcPerNode=2; repeat 1 failed: OOMKilled: out of memory (log: logs/cell-4-1.log)",
    ]


def test_an_interrupted_bench_says_how_far_it_got() -> None:
    half = report(cell(1, 100, 100, strategy="ddp"), cell(2, strategy="ddp"), done=False)
    text = markdown(half)
    assert "Interrupted after 2 runs" in text
    assert "| ddp | 2 | not run |" in text
    assert failures(half) == []


def test_a_busy_machine_is_told() -> None:
    one = report(cell(1, 100, strategy="ddp"))
    assert "busy" not in markdown(one)
    one.machine.load = 1.6
    assert "busy (load 1.6 on 2 cores): measure again when it is idle." in markdown(one)


def test_where_nothing_was_measured_the_table_still_has_a_place_for_it() -> None:
    table = markdown(report(cell(1, strategy="ddp"), cell(2, strategy="ddp"), done=False))
    assert "| strategy | numProcPerNode | samples/s |" in table
    assert "| ddp | 1 | not run |" in table


def test_the_terminals_table_has_the_same_figures_in_little_width() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(report(cell(1, 1000, 1200, strategy="ddp"), cell(2, strategy="ddp"))))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["numProc", "peak"]
    figures = "1,100 (1,000–1,200) 1.00x 100% 9.17 18.3 102 MiB"
    assert " ".join(lines[3].split()) == f"ddp 1 {figures}"
    assert "not run" in lines[4]


def test_the_chart_is_drawn_even_of_failures_alone(tmp_path: Path) -> None:
    draw(report(cell(1, strategy="ddp"), cell(2, strategy="ddp")), tmp_path / "none.png")
    draw(report(cell(1, 5, 6, strategy="ddp"), cell(2, strategy="ddp")), tmp_path / "one.png")
    pictures = [(tmp_path / name).read_bytes() for name in ("none.png", "one.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_the_live_display_shows_the_bench_and_its_current_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = BenchSpec.model_validate(
        {"template": {"spec": {"recipe": "char-gpt"}}, "matrix": {"strategy": ["ddp", "fsdp"]}}
    )
    cells = make_cells(bench)
    display = LiveBenchDisplay(total=2)
    display.begin(cells[0], 1)
    display.end(cells[0], 1, measured(1, 1000))
    assert capsys.readouterr().out == (
        "[1/2] ddp; repeat 1: 1,000 samples/s, 10.0 ms a step, peak 100 MiB (5s)\n"
    )
    display.begin(cells[1], 1)
    status = TrainingRunStatus(phase="Running", step=20, total_steps=60, throughput="9k tokens/s")
    display.show(View(cells[1].run.model_copy(update={"status": status})), [])
    Console(width=110).print(display._progress.get_renderable())
    first, second = capsys.readouterr().out.splitlines()
    assert "run 2 of 2" in first
    assert "s left, Ctrl-C ends the bench" in first
    assert "fsdp; repeat 1" in second
    assert "9k tokens/s" in second
