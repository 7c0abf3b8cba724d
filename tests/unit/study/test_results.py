"""What follows from a study's measurements: medians, speedup and efficiency, curves, costs."""

import re
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_report, make_run
from tests.support.study.builders import make_study, succeeded
from trainyard_api.status import StepSeconds, TrainingRunStatus
from trainyard_api.study import Cost, ScalingStudySpec
from trainyard_api.study_status import CellResult, Measurement
from trainyard_lifecycle.status import apply_report
from trainyard_study.curves import curves, headline
from trainyard_study.results import configurations, measurement, summarise, throughput_unit


def cell(processes: int, *samples: float, tokens: int | None = None, **values: Any) -> CellResult:
    """A cell measured at these rates."""
    runs = [
        Measurement(
            repeat=repeat,
            batch_size=10,
            samples_per_second=rate,
            tokens_per_second=rate * tokens if tokens else None,
            step_seconds=StepSeconds(mean=10 / rate, p50=9 / rate, p99=20 / rate),
            peak_memory_bytes=100 + repeat,
            seconds=5,
        )
        for repeat, rate in enumerate(samples, start=1)
    ]
    sizes = {} if "numNodes" in values else {"numProcPerNode": processes}
    return CellResult(
        number=1, values=values | sizes, label="", processes=processes, measurements=runs
    )


def summarised(*cells: CellResult, cost: Cost | None = None) -> tuple[CellResult, ...]:
    summarise(list(cells), configurations(cells), cost)
    return cells


def spec_of(*cells: CellResult, **more: Any) -> ScalingStudySpec:
    matrix: dict[str, list[Any]] = {}
    for found in cells:
        for path, value in found.values.items():
            if value not in matrix.setdefault(path, []):
                matrix[path].append(value)
    return make_study(matrix=matrix, **more).spec


def test_throughput_is_the_batch_over_the_mean_step_time() -> None:
    status = TrainingRunStatus(phase="Succeeded")
    report = make_report(
        phase="finished",
        batch_size=32,
        samples_per_second=1000,  # of the last window only
        tokens_per_second=64_000,
        step_seconds=StepSeconds(mean=0.5, p50=0.4, p99=0.9),
        peak_memory_bytes=7,
    )
    apply_report(status, report)
    found = measurement(make_run().model_copy(update={"status": status}), repeat=2)
    assert found
    assert (found.samples_per_second, found.tokens_per_second) == (64, 64 * 64)
    assert (found.step_seconds.p99, found.peak_memory_bytes, found.repeat) == (0.9, 7, 2)
    assert measurement(make_run(), 1) is None
    assert measurement(succeeded(make_run()), 1)


def test_figures_are_medians_and_memory_the_most_of_any_run() -> None:
    (one,) = summarised(cell(1, 100, 300, 110))
    assert one.samples_per_second
    assert one.step_seconds_p99
    assert tuple(one.samples_per_second.model_dump().values()) == (110, 100, 300)
    assert one.step_seconds_p99.max == pytest.approx(0.2)
    assert one.peak_memory_bytes == 103


def test_speedup_is_over_the_smallest_size_of_the_same_configuration() -> None:
    cells = summarised(
        cell(2, 180, strategy="ddp"),
        cell(1, 100, strategy="ddp"),
        cell(2, 80, strategy="fsdp"),
        cell(4, 120, strategy="fsdp"),
    )
    assert [c.speedup for c in cells] == [1.8, 1, 1, 1.5]
    assert [c.efficiency for c in cells] == [0.9, 1, 1, 0.75]
    assert [c.versus_first for c in cells] == pytest.approx([1, 100 / 180, 80 / 180, 120 / 180])


def test_where_the_smallest_has_failed_the_next_one_is_the_base() -> None:
    _, two, four = summarised(cell(1), cell(2, 100), cell(4, 150))
    assert (two.speedup, four.speedup, four.efficiency) == (1, 1.5, 0.75)


def test_a_price_gives_the_cost_of_a_million() -> None:
    one, two = summarised(
        cell(1, 100, tokens=10), cell(2, 160, tokens=10), cost=Cost(per_process_hour=3.6)
    )
    assert one.cost_per_million == pytest.approx(0.001 / 1000 * 1e6)
    assert two.cost_per_million == pytest.approx(0.002 / 1600 * 1e6)


def sizes_of(*cells: CellResult) -> list[list[int]]:
    return [[c.processes for c in found.cells] for found in configurations(cells)]


def test_a_batch_that_grows_with_the_size_is_one_configuration() -> None:
    """Weak scaling; the same batches at every size are as many configurations."""
    batch, accumulation = "config.batch_size", "config.gradient_accumulation_steps"
    assert sizes_of(cell(1, **{accumulation: 8}), cell(2, **{accumulation: 4})) == [[1, 2]]
    both = [cell(n, **{batch: 8, accumulation: a}) for n, a in ((1, 4), (2, 2))]
    assert sizes_of(*both) == [[1, 2]]
    weak = [cell(1, **{batch: 32}), cell(2, **{batch: 64})]
    assert sizes_of(*weak) == [[1, 2]]
    strong = [cell(n, **{batch: b}) for n in (1, 2) for b in (32, 64)]
    assert sizes_of(*strong) == [[1, 2], [1, 2]]


def test_the_same_size_by_nodes_and_by_processes_are_two_configurations() -> None:
    cells = [
        cell(nodes * per_node, numNodes=nodes, numProcPerNode=per_node)
        for nodes in (1, 2)
        for per_node in (1, 2)
    ]
    assert sizes_of(*cells) == [[1, 2], [2, 4]]
    assert sizes_of(cell(1, numNodes=1), cell(2, numNodes=2)) == [[1, 2]]


def test_curves_mark_what_was_measured_and_what_is_projected() -> None:
    cells = summarised(*(cell(n, 90 * n, 100 * n, 110 * n, tokens=4) for n in (1, 2, 4)))
    spec = spec_of(*cells, projectTo=[2, 64, 8])
    (curve,) = curves(spec, cells, configurations(cells))
    assert (curve.label, curve.unit, curve.configuration) == ("", "tokens", {})
    assert curve.law
    assert (curve.law.kind, curve.law.sizes) == ("linear", [1, 2, 4])
    assert [(p.processes, p.source) for p in curve.points] == [
        (1, "measured"),
        (2, "measured"),
        (4, "measured"),
        (8, "projected"),
        (64, "projected"),
    ]
    measured = curve.points[0].throughput
    assert (measured.value, measured.low, measured.high) == (400, 360, 440)
    far = curve.points[-1]
    assert far.throughput.low < far.throughput.value == pytest.approx(64 * 400)
    assert far.efficiency == pytest.approx(1)
    assert [point.processes for point in curve.points if point.too_wide] == [64]
    assert [p.processes for p in curves(spec_of(*cells), cells, configurations(cells))[0].points][
        3:
    ] == [8, 16, 32]


def test_a_single_size_has_no_law_and_says_why() -> None:
    cells = summarised(cell(2, 100, strategy="ddp"), cell(2, 120, strategy="fsdp"))
    found = curves(spec_of(*cells), cells, configurations(cells))
    assert [(c.label, c.law, len(c.points)) for c in found] == [("ddp", None, 1), ("fsdp", None, 1)]
    assert found[0].why_no_law == "at least two numbers of processes are required"
    assert headline(found) == "fsdp: 120 samples/s on 2"


def test_the_headline_is_of_the_fastest_configuration() -> None:
    cells = summarised(
        cell(1, 1000, strategy="ddp"),
        cell(2, 1870, strategy="ddp"),
        cell(1, 10, strategy="fsdp"),
        cell(2, 20, strategy="fsdp"),
    )
    found = curves(spec_of(*cells), cells, configurations(cells))
    assert headline(found) == "ddp: 1.87x on 2 (94%), 1.87k samples/s; 4: 3.52x projected"
    assert headline([]) == ""


def test_the_headline_gives_a_range_where_there_is_no_middle() -> None:
    cells = summarised(cell(1, 100, 102), cell(2, 150, 148))
    found = curves(spec_of(*cells, projectTo=[32]), cells, configurations(cells))
    assert found[0].points[-1].too_wide
    assert re.search(r"; 32: 2\.\dx to [12]\d\.\dx projected$", headline(found))


def test_samples_are_the_unit_unless_all_have_tokens() -> None:
    assert throughput_unit(summarised(cell(1, 5, tokens=3), cell(2, 6))) == "samples"
    assert throughput_unit(summarised(cell(1, 5, tokens=3), cell(2))) == "tokens"
    assert throughput_unit([]) == "samples"
