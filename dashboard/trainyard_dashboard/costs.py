"""What a training costs on each hardware of the price file."""

from typing import Literal

from pydantic import BaseModel, Field

from trainyard_api.study_status import Interval
from trainyard_dashboard.calculator import Known, Scaling
from trainyard_dashboard.prices import DEFAULT, Price, PriceFile, units


class CostRow(BaseModel):
    """One hardware. Its price and speed were entered."""

    name: str
    kind: Literal["cloud", "spot", "own"]
    note: str
    speed: float
    lost_share: float
    units: int = Field(description="That have to be paid for: whole ones.")
    unit_processes: int
    unit_hour: float = Field(description="Price of one unit for an hour of work.")
    hours: Interval
    unit_hours: Interval = Field(description="Hours of all units; times the price: the cost.")
    cost: Interval


class Costs(BaseModel):
    """The whole comparison."""

    file: str
    is_example: bool
    currency: str
    unit: Literal["tokens", "samples"]
    processes: int
    origin: Known | None = Field(description="Of the throughput; null: it is not known.")
    too_wide: bool = Field(description="The middles of the intervals say nothing.")
    why_unknown: str = ""
    rows: list[CostRow]


def costs(scaling: Scaling, processes: int, budget: float, file: PriceFile, path: str) -> Costs:
    """The costs of `budget` tokens or samples with so many processes, in the file's order."""
    training = scaling.training(processes, budget, None)
    why = ""
    if training is None:
        sizes = ", ".join(map(str, scaling.measured))
        why = f"measured with {sizes} processes only, and no law is known: {scaling.why_no_law}"
    return Costs(
        file=path,
        is_example=path == str(DEFAULT),
        currency=file.currency,
        unit=scaling.unit,
        processes=processes,
        origin=training.origin if training else None,
        too_wide=training is not None and training.too_wide,
        why_unknown=why,
        rows=[_row(price, processes, training.hours) for price in file.prices] if training else [],
    )


def _row(price: Price, processes: int, measured_hours: Interval) -> CostRow:
    count = units(price, processes)
    hours = _times(measured_hours, 1 / price.speed / (1 - price.lost_share))
    unit_hours = _times(hours, count)
    return CostRow(
        name=price.name,
        kind=price.kind,
        note=price.note,
        speed=price.speed,
        lost_share=price.lost_share,
        units=count,
        unit_processes=price.processes,
        unit_hour=price.unit_hour,
        hours=hours,
        unit_hours=unit_hours,
        cost=_times(unit_hours, price.unit_hour),
    )


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(
        value=interval.value * factor, low=interval.low * factor, high=interval.high * factor
    )
