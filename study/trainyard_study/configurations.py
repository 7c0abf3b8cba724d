"""Which cells belong to one curve: the same configuration at several sizes. Pure."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainyard_api.study_status import CellResult, Spread, Unit

NODES, PROCESSES = "numNodes", "numProcPerNode"
BATCH, ACCUMULATION = "config.batch_size", "config.gradient_accumulation_steps"
_FOLLOWERS = ((BATCH, ACCUMULATION), (BATCH,), (ACCUMULATION,), ())


@dataclass(frozen=True)
class Configuration:
    """The values of the matrix but the size, and the cells that have them, smallest first."""

    values: dict[str, Any]
    cells: tuple[CellResult, ...]

    @property
    def smallest(self) -> CellResult | None:
        """The smallest cell that was measured: what the others are compared with."""
        return next((cell for cell in self.cells if cell.measurements), None)


def configurations(cells: Sequence[CellResult]) -> list[Configuration]:
    """The cells by configuration, in the order of their first cells.

    What only makes a cell larger is no part of it: the numbers of nodes and processes, and the
    batch or the accumulation steps where they follow the size (every size has just one, as in weak
    scaling). Where two cells of a configuration would have the same size (2 x 1 and 1 x 2),
    processes per node tell them apart.
    """
    for sizes, followers in itertools.product(((NODES, PROCESSES), (NODES,)), _FOLLOWERS):
        found = _grouped(cells, (*sizes, *followers))
        if all(_sizes_differ(group) for group in found):
            return found
    return _grouped(cells, ())


def throughput_unit(cells: Sequence[CellResult]) -> Unit:
    """Tokens, if every measured cell has them; else samples."""
    measured = [cell for cell in cells if cell.measurements]
    return "tokens" if measured and all(c.tokens_per_second for c in measured) else "samples"


def throughput(cell: CellResult, unit: Unit) -> Spread | None:
    """What the cell trains on per second."""
    return cell.tokens_per_second if unit == "tokens" else cell.samples_per_second


def rates(cell: CellResult, unit: Unit) -> list[float]:
    """The throughput of every run of the cell."""
    if unit == "samples":
        return [run.samples_per_second for run in cell.measurements]
    return [run.tokens_per_second for run in cell.measurements if run.tokens_per_second]


def _grouped(cells: Sequence[CellResult], without: tuple[str, ...]) -> list[Configuration]:
    groups: dict[str, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(json.dumps(_values(cell, without), default=str), []).append(cell)
    return [
        Configuration(_values(group[0], without), tuple(sorted(group, key=lambda c: c.processes)))
        for group in groups.values()
    ]


def _values(cell: CellResult, without: tuple[str, ...]) -> dict[str, Any]:
    return {path: value for path, value in cell.values.items() if path not in without}


def _sizes_differ(group: Configuration) -> bool:
    return max(Counter(cell.processes for cell in group.cells).values()) == 1
