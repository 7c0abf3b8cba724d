"""Projections of time and cost, and the price file."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard.home import MEASURED, study
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.costs import (
    EXAMPLE_PRICES,
    PriceFile,
    PriceFileError,
    compare_costs,
    parse_prices,
)
from trainyard_dashboard.devices import of_study
from trainyard_dashboard.projection import ScalingModel, scaling_models
from trainyard_study.fit import fit

LAW = fit(MEASURED)
MODEL = ScalingModel(MEASURED, "tokens", "gpu")
BUDGET = 3.6e6  # 1000 s at 3600 tokens/s


def test_a_measured_size_shows_the_measurements() -> None:
    point = MODEL.training(2, BUDGET, 2.0)
    assert point is not None
    assert point.origin == "measured"
    rate = point.throughput
    assert (rate.value, rate.low, rate.high) == (1900, 1880, 1930)
    assert point.speedup.value == pytest.approx(1.9)
    assert point.efficiency == pytest.approx(0.95)
    hours = point.hours
    assert [hours.value, hours.low, hours.high] == pytest.approx(
        [BUDGET / rate / 3600 for rate in (1900, 1930, 1880)]
    )
    assert point.cost is not None
    assert point.cost.value == pytest.approx(hours.value * 2 * 2.0)


@pytest.mark.parametrize("processes", [3, 8, 64])
def test_any_other_size_is_projected_by_the_law(processes: int) -> None:
    point = MODEL.training(processes, BUDGET, None)
    assert point is not None
    assert point.origin == "projected"
    assert point.throughput == LAW.throughput(processes)
    assert point.throughput.low < point.throughput.value < point.throughput.high
    assert point.hours.low < point.hours.value < point.hours.high
    assert point.hours.high == pytest.approx(BUDGET / LAW.throughput(processes).low / 3600)
    assert point.speedup.value == pytest.approx(LAW.throughput(processes).value / 1000)
    assert point.cost is None


def test_a_projection_has_a_table_of_sizes_and_the_curve_of_the_law() -> None:
    found = MODEL.project(24, BUDGET, 1.0)
    assert [(one.processes, one.origin) for one in found.sizes] == [
        (1, "measured"),
        (2, "measured"),
        (4, "measured"),
        (8, "projected"),
        (16, "projected"),
        (24, "projected"),
    ]
    sizes = [point.processes for point in found.chart]
    assert all(point.throughput == LAW.throughput(point.processes) for point in found.chart)
    assert sizes == sorted(set(sizes))
    assert {1, 2, 4, 24} <= set(sizes)
    assert max(sizes) == 24
    assert found.law is not None
    assert (found.law.kind, found.law.residual) == (LAW.kind, LAW.residual)
    assert found.law.choice == LAW.choice


def test_uncertain_projections_come_with_a_warning() -> None:
    assert MODEL.project(8, BUDGET, None).warnings == []
    (far, *_) = MODEL.project(64, BUDGET, None).warnings
    assert "16 times the largest measured size (4)" in far
    few = ScalingModel({1: [10.0], 2: [19.0]}, "tokens").project(4, BUDGET, None).warnings
    assert "Only two sizes" in few[0]
    assert "measured only once: the intervals assume that runs differ by 2%" in few[1]
    slower = ScalingModel({1: [10.0], 2: [17.0], 4: [20.0], 8: [15.0]}, "tokens")
    (*_, worse) = slower.project(30, BUDGET, None).warnings
    assert "make it slower" in worse


def test_far_from_the_measured_sizes_only_a_range_is_given() -> None:
    two = ScalingModel({1: [100.0, 102.0], 2: [150.0, 148.0]}, "tokens")
    near, far = two.project(3, BUDGET, None), two.project(32, BUDGET, None)
    assert near.chosen
    assert far.chosen
    assert (near.chosen.too_wide, far.chosen.too_wide) == (False, True)
    assert [point.processes for point in far.sizes if point.too_wide] == [8, 16, 32]
    assert not any("only a range" in warning for warning in near.warnings)
    assert any("only a range for 32 processes" in warning for warning in far.warnings)
    file = PriceFile(EXAMPLE_PRICES).read()
    assert compare_costs(two, 32, BUDGET, file, Path("prices.yaml")).too_wide
    assert not compare_costs(two, 2, BUDGET, file, Path("prices.yaml")).too_wide


def test_without_a_law_only_measured_sizes_have_a_result() -> None:
    alone = ScalingModel({2: [10.0, 11.0]}, "samples")
    found = alone.project(4, BUDGET, None)
    assert found.chosen is None
    assert found.why_no_law == "at least two numbers of processes are required"
    assert alone.project(2, BUDGET, None).chosen is not None
    answer = compare_costs(alone, 4, BUDGET, PriceFile(EXAMPLE_PRICES).read(), EXAMPLE_PRICES)
    assert answer.rows == []
    assert answer.why_unknown.startswith("only 2 processes were measured")


def test_each_configuration_of_a_study_has_its_own_model() -> None:
    wire = study()
    cells = wire["status"]["cells"]
    other: list[dict[str, Any]] = [
        {**cell, "number": 10 + i, "values": {**cell["values"], "strategy": "fsdp"}}
        for i, cell in enumerate(cells[:2])
    ]
    for cell in other:
        cell["measurements"] = [{**run, "tokensPerSecond": 7.0} for run in cell["measurements"]]
    wire["status"]["cells"] = cells + other
    curve = wire["status"]["curves"][0]
    wire["status"]["curves"].append({**curve, "configuration": {"strategy": "fsdp"}, "label": "f"})
    found = dict(scaling_models(ScalingStudy.model_validate(wire)))
    assert {name: list(one.measured) for name, one in found.items()} == {
        "sizes": [1, 2, 4],
        "f": [1, 2],
    }
    assert found["f"].measured[1] == [7.0, 7.0, 7.0]
    assert found["sizes"].measured == {n: sorted(values) for n, values in MEASURED.items()}


def test_the_shipped_prices_are_examples() -> None:
    file = PriceFile(EXAMPLE_PRICES).read()
    assert {price.kind for price in file.prices} == {"cloud", "spot", "own"}
    assert all(price.note.startswith("example") for price in file.prices)


def test_cost_depends_on_units_speed_and_lost_time() -> None:
    text = """
prices:
  - {name: one, kind: cloud, perHour: 3.0}
  - {name: eight, kind: spot, processes: 8, perHour: 8.0, lostShare: 0.5, speed: 2.0}
  - name: own
    kind: own
    processes: 4
    purchase: 87660        # 1 an hour over ten years
    lifetimeYears: 10
    busyShare: 0.5
    powerWatts: 2000
    perKwh: 0.25
"""
    file = parse_prices(Path("prices.yaml"), text.encode())
    training = MODEL.training(4, BUDGET, None)
    assert training is not None
    one, eight, own = compare_costs(MODEL, 4, BUDGET, file, Path("prices.yaml")).rows
    assert one.cost
    assert eight.cost
    assert eight.hours
    assert (one.units, eight.units, own.units) == (4, 1, 1)
    assert one.cost.value == pytest.approx(training.hours.value * 4 * 3)
    assert eight.hours.value == pytest.approx(training.hours.value)  # twice as fast, half is lost
    assert eight.cost.value == pytest.approx(training.hours.value * 8)
    assert own.unit_hour == pytest.approx(2 + 0.5)
    assert one.cost.low < one.cost.value < one.cost.high


def test_a_throughput_measured_on_a_cpu_says_nothing_about_gpus() -> None:
    text = """
prices:
  - {name: cores, kind: cloud, device: cpu, perHour: 3.0}
  - {name: gpus, kind: cloud, processes: 8, perHour: 8.0}
  - {name: faster, kind: cloud, perHour: 8.0, speed: 50}
"""
    file = parse_prices(Path("prices.yaml"), text.encode())
    measured = ScalingModel(MEASURED, "tokens", "cpu")
    cores, gpus, faster = compare_costs(measured, 1, BUDGET, file, Path("prices.yaml")).rows
    assert cores.cost is not None
    assert cores.cost.value == pytest.approx(BUDGET / 1000 / 3600 * 3)
    assert (gpus.speed, gpus.hours, gpus.unit_hours, gpus.cost) == (None, None, None, None)
    assert gpus.why_unknown == (
        "the throughput was measured on a CPU, which says nothing about a GPU; enter its speed,"
        " relative to the measured one"
    )
    assert faster.hours is not None
    assert faster.hours.value == pytest.approx(BUDGET / 1000 / 3600 / 50)
    assert faster.is_estimate
    unknown = ScalingModel(MEASURED, "tokens")
    why = compare_costs(unknown, 1, BUDGET, file, Path("prices.yaml")).rows[0].why_unknown
    assert why.startswith("nobody knows what the throughput was measured on")


def test_what_a_study_was_measured_on_follows_from_its_machine_or_its_limits() -> None:
    wire = study()
    assert of_study(ScalingStudy.model_validate(wire)) == "cpu"
    wire["spec"]["template"]["spec"]["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": 1}}
    assert of_study(ScalingStudy.model_validate(wire)) == "gpu"
    machine = {"cpu": "x", "cores": 2, "system": "Linux", "python": "3.11", "trainyard": "1"}
    wire["status"]["machine"] = machine
    assert of_study(ScalingStudy.model_validate(wire)) == "cpu"
    wire["status"]["machine"] = {**machine, "gpus": ["H200"]}
    assert of_study(ScalingStudy.model_validate(wire)) == "gpu"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices:\n  - {name: a, kind: cloud}\n", ":2: prices.0: cloud needs perHour"),
        (
            "prices:\n  - name: a\n    kind: cloud\n    perHour: '1'\n",
            ":4: prices.0.perHour: Input should be a valid number (got '1')",
        ),
        (
            "prices:\n  - name: a\n    kind: cloud\n    perHuor: 1\n",
            ":4: prices.0.perHuor: unknown key (got 1)",
        ),
        ("currency: USD\nprices: []\n", ":2: prices: List should have at least 1 item"),
        ("prices:\n  - name: [\n", ":3: "),
        ("", ":1: Input should be a valid dictionary"),
        (
            "prices:\n  - {name: a, kind: own, purchase: 1, lifetimeYears: 1, perHour: 1}\n",
            ":2: prices.0: own hardware has no perHour",
        ),
        ("prices:\n  - {name: a, kind: rent, perHour: 1}\n", ":2: prices.0.kind: Input should be"),
        (
            "prices:\n- {name: a, kind: cloud, perHour: .nan}\n",
            ":2: prices.0.perHour: Input should",
        ),
    ],
)
def test_an_error_in_the_price_file_is_one_line_with_its_position(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(PriceFileError) as raised:
        PriceFile(path).read()
    error = str(raised.value)
    assert error.startswith(f"{path}{message}")
    assert "\n" not in error


def test_a_changed_price_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    with pytest.raises(PriceFileError, match="No such file"):
        PriceFile(path).read()
    path.write_text("prices:\n- {name: a, kind: cloud, perHour: 1.5}\n")
    prices = PriceFile(path)
    assert prices.read().prices[0].unit_hour == 1.5
    path.write_text("prices:\n- {name: a, kind: cloud, perHour: 22.5}\n")
    assert prices.read().prices[0].unit_hour == 22.5
