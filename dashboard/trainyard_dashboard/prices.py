"""The price file: what hardware costs, as the user entered it."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from trainyard_api.base import SpecModel
from trainyard_api.study import Cost

DEFAULT = Path(__file__).with_name("static") / "prices.yaml"
MAX_BYTES = 1 << 18
HOURS_OF_A_YEAR = 365.25 * 24

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class PriceFileError(Exception):
    """The price file is wrong; the message is one line: FILE:LINE: what to change."""


class Price(SpecModel):
    """One way to get hardware."""

    name: str = Field(min_length=1, max_length=100)
    kind: Literal["cloud", "spot", "own"]
    processes: int = Field(
        default=1, ge=1, le=1024, description="Processes (GPUs) of one unit: what is rented whole."
    )
    speed: Positive = Field(
        default=1, description="Of one process, against the one that was measured: you estimate it."
    )
    per_hour: Amount | None = Field(default=None, description="cloud, spot: of one unit.")
    lost_share: Share = Field(
        default=0, description="spot: share of the time that interruptions cost."
    )
    purchase: Amount | None = Field(default=None, description="own: of one unit.")
    lifetime_years: Positive | None = Field(default=None, description="own: until it is replaced.")
    busy_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1, description="own: share of its life that it works."
    )
    power_watts: Amount = Field(
        default=0, description="own: of one unit at work, cooling included."
    )
    per_kwh: Amount = Field(default=0, description="own: price of a kilowatt-hour.")
    note: str = Field(default="", max_length=300, description="Where and when the price is from.")

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
        """Price of one unit for an hour of work."""
        if self.per_hour is not None:
            return self.per_hour
        assert self.purchase is not None
        assert self.lifetime_years is not None
        hours = self.lifetime_years * HOURS_OF_A_YEAR * self.busy_share
        return self.purchase / hours + self.power_watts / 1000 * self.per_kwh


class PriceFile(SpecModel):
    """The whole file."""

    currency: str = Cost.model_fields["currency"].default
    prices: list[Price] = Field(min_length=1, max_length=100)


class Prices:
    """The price file, read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, int] | None = None
        self._file: PriceFile | None = None

    def read(self) -> PriceFile:
        """Raises PriceFileError."""
        try:
            status = self.path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if self._file is None or version != self._version:
                self._file = parse(self.path, self.path.read_bytes()[: MAX_BYTES + 1])
                self._version = version
        except OSError as error:
            raise PriceFileError(f"{self.path}: {error.strerror}") from None
        return self._file


def units(price: Price, processes: int) -> int:
    """Whole units that so many processes need."""
    return math.ceil(processes / price.processes)


def parse(path: Path, data: bytes) -> PriceFile:
    """The prices in `data`. Raises PriceFileError that names `path` and the line."""
    if len(data) > MAX_BYTES:
        raise PriceFileError(f"{path}: larger than {MAX_BYTES >> 10} KiB")
    try:
        text = data.decode()
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PriceFileError(f"{path}:{line}: not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise PriceFileError(f"{path}:{mark.line + 1 if mark else 1}: {what}") from None
    except (ValueError, RecursionError) as error:
        raise PriceFileError(f"{path}:1: {str(error).splitlines()[0]}") from None
    try:
        return PriceFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = "unknown key"
        where = ".".join(str(part) for part in first["loc"])
        got = first.get("input")
        shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
        line = _line(node, first["loc"])
        prefix = f"{where}: " if where else ""
        raise PriceFileError(f"{path}:{line}: {prefix}{what}{shown}") from None


def _line(node: Any, location: tuple[int | str, ...]) -> int:
    """The line of the value at `location`, or of the nearest thing around it."""
    line = 1
    for part in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
