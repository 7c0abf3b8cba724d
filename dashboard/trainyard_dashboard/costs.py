"""The price file, and what a training run costs on each hardware in it."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from trainyard_api.base import SpecModel
from trainyard_api.study import Cost
from trainyard_api.study_status import Interval
from trainyard_dashboard.devices import Device
from trainyard_dashboard.projection import PointOrigin, ScalingModel, scaled

EXAMPLE_PRICES = Path(__file__).with_name("static") / "prices.yaml"
MAX_BYTES = 1 << 18
HOURS_PER_YEAR = 365.25 * 24

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class PriceFileError(Exception):
    """The price file is invalid; the message is one line: FILE:LINE: what to change."""


class Price(SpecModel):
    """One kind of hardware, rented or owned."""

    name: str = Field(min_length=1, max_length=100)
    kind: Literal["cloud", "spot", "own"]
    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes (GPUs) of one unit, the smallest quantity that can be rented.",
    )
    device: Device = Field(default="gpu", description="What a process trains on: cpu or gpu.")
    speed: Positive | None = Field(
        default=None,
        description="Speed of one process relative to the measured one: your estimate. Without it"
        " the same kind of device counts as equally fast, and another kind has no cost.",
    )
    per_hour: Amount | None = Field(
        default=None, description="cloud, spot: price of one unit for an hour."
    )
    lost_share: Share = Field(
        default=0, description="spot: share of the time lost to interruptions."
    )
    purchase: Amount | None = Field(default=None, description="own: price of one unit.")
    lifetime_years: Positive | None = Field(default=None, description="own: years until replaced.")
    busy_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1, description="own: share of its lifetime in which it is used."
    )
    power_watts: Amount = Field(
        default=0, description="own: power draw of one unit under load, cooling included."
    )
    per_kwh: Amount = Field(default=0, description="own: price of a kilowatt-hour.")
    note: str = Field(default="", max_length=300, description="Origin and date of the price.")

    @model_validator(mode="after")
    def _complete(self) -> "Price":
        if self.kind == "own":
            if self.purchase is None or self.lifetime_years is None:
                raise ValueError("own hardware needs purchase and lifetimeYears")
            if self.per_hour is not None:
                raise ValueError("own hardware has no perHour: it follows from the other values")
        else:
            if self.per_hour is None:
                raise ValueError(f"{self.kind} needs perHour")
            if self.purchase is not None or self.lifetime_years is not None:
                raise ValueError(f"purchase and lifetimeYears belong to kind own, not {self.kind}")
        return self

    @property
    def unit_hour(self) -> float:
        """Price of one unit for an hour of use."""
        if self.per_hour is not None:
            return self.per_hour
        assert self.purchase is not None
        assert self.lifetime_years is not None
        hours = self.lifetime_years * HOURS_PER_YEAR * self.busy_share
        return self.purchase / hours + self.power_watts / 1000 * self.per_kwh


class PriceList(SpecModel):
    """The content of a price file."""

    currency: str = Cost.model_fields["currency"].default
    prices: list[Price] = Field(min_length=1, max_length=100)


class PriceFile:
    """A price file, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, int] | None = None
        self._content: PriceList | None = None

    def read(self) -> PriceList:
        """Return the current prices. Raises PriceFileError."""
        try:
            status = self.path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if self._content is None or version != self._version:
                self._content = parse_prices(self.path, self.path.read_bytes()[: MAX_BYTES + 1])
                self._version = version
        except OSError as error:
            raise PriceFileError(f"{self.path}: {error.strerror}") from None
        return self._content


class CostRow(BaseModel):
    """Time and cost on one kind of hardware."""

    name: str
    kind: Literal["cloud", "spot", "own"]
    note: str
    speed: float | None = Field(
        description="Of one process relative to the measured one; null: nobody knows."
    )
    is_estimate: bool = Field(description="The speed was entered; otherwise the devices are alike.")
    why_unknown: str = Field(description="Why there is no cost; one line.")
    lost_share: float
    units: int = Field(description="Whole units to pay for.")
    unit_processes: int
    unit_hour: float = Field(description="Price of one unit for an hour of use.")
    hours_at_speed_1: Interval
    hours: Interval | None
    unit_hours: Interval | None = Field(description="Hours times units; times the price: the cost.")
    cost: Interval | None


class Costs(BaseModel):
    """The comparison of all hardware in the price file."""

    file: str
    is_example: bool
    currency: str
    unit: Literal["tokens", "samples"]
    processes: int
    origin: PointOrigin | None = Field(description="Of the throughput; null if it is unknown.")
    device: Device | None = Field(description="That it was measured on; null if it is unknown.")
    too_wide: bool = Field(
        description="The intervals are too wide for their middles to mean anything."
    )
    why_unknown: str = ""
    rows: list[CostRow]


def compare_costs(
    model: ScalingModel, processes: int, budget: float, prices: PriceList, path: Path
) -> Costs:
    """The cost on each kind of hardware, in the file's order.

    Args:
        model: gives the throughput.
        processes: number of processes.
        budget: tokens or samples to train on.
        prices: the content of the price file.
        path: of the price file.
    """
    training = model.training(processes, budget, None)
    why = ""
    if training is None:
        sizes = ", ".join(map(str, model.measured))
        why = f"only {sizes} processes were measured, and there is no law: {model.why_no_law}"
    return Costs(
        file=str(path),
        is_example=path == EXAMPLE_PRICES,
        currency=prices.currency,
        unit=model.unit,
        processes=processes,
        origin=training.origin if training else None,
        device=model.device,
        too_wide=training is not None and training.too_wide,
        why_unknown=why,
        rows=[_row(price, processes, training.hours, model.device) for price in prices.prices]
        if training
        else [],
    )


def _row(
    price: Price, processes: int, measured_hours: Interval, measured_on: Device | None
) -> CostRow:
    units = math.ceil(processes / price.processes)
    base = scaled(measured_hours, 1 / (1 - price.lost_share))
    speed = price.speed or (1.0 if price.device == measured_on else None)
    hours = scaled(base, 1 / speed) if speed else None
    unit_hours = scaled(hours, units) if hours else None
    return CostRow(
        name=price.name,
        kind=price.kind,
        note=price.note,
        speed=speed,
        is_estimate=price.speed is not None,
        why_unknown="" if speed else _why_unknown(price.device, measured_on),
        lost_share=price.lost_share,
        units=units,
        unit_processes=price.processes,
        unit_hour=price.unit_hour,
        hours_at_speed_1=base,
        hours=hours,
        unit_hours=unit_hours,
        cost=scaled(unit_hours, price.unit_hour) if unit_hours else None,
    )


def _why_unknown(device: Device, measured_on: Device | None) -> str:
    names = {"cpu": "a CPU", "gpu": "a GPU"}
    if measured_on is None:
        return (
            "nobody knows what the throughput was measured on; enter the speed of this hardware,"
            " relative to the measured one"
        )
    return (
        f"the throughput was measured on {names[measured_on]}, which says nothing about"
        f" {names[device]}; enter its speed, relative to the measured one"
    )


def parse_prices(path: Path, data: bytes) -> PriceList:
    """Parse a price file.

    Raises:
        PriceFileError: names `path`, the line and the key.
    """
    if len(data) > MAX_BYTES:
        raise PriceFileError(f"{path}: larger than {MAX_BYTES >> 10} KiB")
    try:
        text = data.decode()
        root = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PriceFileError(f"{path}:{line}: not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise PriceFileError(f"{path}:{mark.line + 1 if mark else 1}: {message}") from None
    except (ValueError, RecursionError) as error:
        raise PriceFileError(f"{path}:1: {str(error).splitlines()[0]}") from None
    try:
        return PriceList.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        key = ".".join(str(part) for part in first["loc"])
        value = first.get("input")
        got = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
        line = _line(root, first["loc"])
        prefix = f"{key}: " if key else ""
        raise PriceFileError(f"{path}:{line}: {prefix}{message}{got}") from None


def _line(node: Any, location: tuple[int | str, ...]) -> int:
    """The line of the value at `location`, or of the nearest enclosing node."""
    line = 1
    for part in location:
        pair = None
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            pair = (node.value[part], node.value[part])
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line
