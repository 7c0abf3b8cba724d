"""Dashboards: builders of Grafana's SDK with the defaults that all of our panels share.

Each function returns a builder of the SDK. Dashboards chain its methods where a panel differs from
the defaults, which are: a third of the width, an axis from 0, no unit, one color per series.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.builders.barchart import Panel as BarChart
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.builders.trend import Panel as Trend
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TableCellHeight,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

WIDTH = 24  # columns of Grafana's grid
DATASOURCE = DataSourceRef("prometheus", "${datasource}")
MERGE = DataTransformerConfig("merge", options={})

Panel = TimeSeries | Stat | Table | BarChart | Trend
_P = TypeVar("_P", TimeSeries, Stat, Table, BarChart, Trend)
_Chart = TypeVar("_Chart", TimeSeries, BarChart, Trend)


def timeseries(
    title: str,
    description: str,
    queries: dict[str, str],
    unit: str = "none",
    *,
    stacked: bool = False,
    from_zero: bool = True,
) -> TimeSeries:
    """Lines over time.

    Args:
        queries: PromQL expressions by legend, a template such as `{{run}}`.
        unit: Grafana's id of it: s, bytes, percentunit, reqps, short, none ...
        from_zero: the axis starts at 0 rather than at the lowest value.
    """
    targets = [_range_query(expr, legend) for legend, expr in queries.items()]
    panel = _chart(_panel(TimeSeries(), title, description, targets, unit), SortOrder.DESCENDING)
    mode = StackingMode.NORMAL if stacked else StackingMode.NONE
    panel.stacking(common.StackingConfig().mode(mode).group("A")).span_nulls(False)
    panel.line_width(2).fill_opacity(30 if stacked else 0).show_points(VisibilityMode.AUTO)
    return panel.min(0) if from_zero else panel


def stat(
    title: str, description: str, expr: str, unit: str = "none", *, legend: str = "__auto"
) -> Stat:
    """The current value of each series, as a number."""
    panel = _panel(Stat(), title, description, [_range_query(expr, legend)], unit)
    panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(BigValueGraphMode.NONE).color_mode(BigValueColorMode.VALUE)
    return panel.span(4).height(4)


def table(title: str, description: str, *exprs: str) -> Table:
    """The current values, one row per set of labels, over the full width."""
    panel = _panel(Table(), title, description, [_instant_query(expr) for expr in exprs])
    return panel.cell_height(TableCellHeight.SM).span(WIDTH)


def barchart(title: str, description: str, x: str, expr: str) -> BarChart:
    """The current values, one bar per value of the field `x`."""
    panel = _panel(BarChart(), title, description, [_instant_query(expr)])
    return _chart(panel, SortOrder.NONE).x_field(x).line_width(1).fill_opacity(70).min(0)


def trend(title: str, description: str, x: str, *exprs: str, unit: str = "none") -> Trend:
    """The current values as lines over the field `x`."""
    targets = [_instant_query(expr) for expr in exprs]
    panel = _chart(_panel(Trend(), title, description, targets, unit), SortOrder.NONE)
    panel.line_width(2).fill_opacity(0).show_points(VisibilityMode.ALWAYS)
    return panel.x_field(x).min(0)


def thresholds(base: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """The color `base`, and another one from each value on."""
    colors = [Threshold(None, base), *(Threshold(value, color) for value, color in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(colors)


def properties(**values: Any) -> list[DynamicConfigValue]:
    """Settings of one field, for `override_by_name`; `__` in a key stands for a dot."""
    return [DynamicConfigValue(key.replace("__", "."), value) for key, value in values.items()]


def columns(names: dict[str, str], hidden: Sequence[str] = ()) -> DataTransformerConfig:
    """Rename fields and show them in this order; drop the `hidden` ones."""
    order = {name: index for index, name in enumerate(names)}
    dropped = dict.fromkeys(hidden, True)
    options = {"renameByName": names, "indexByName": order, "excludeByName": dropped}
    return DataTransformerConfig("organize", options=options)


def variable(
    name: str, title: str, metric: str, label: str = "", *, multi: bool = False
) -> dashboard.QueryVariable:
    """A selector above the panels: the values of `label` (by default `name`) of `metric`."""
    values = f"label_values({metric}, {label or name})"
    made = dashboard.QueryVariable(name).label(title).datasource(DATASOURCE)
    made.query({"query": values, "refId": "variable", "qryType": 1})
    made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    made.multi(multi).include_all(multi)
    if multi:  # "All" includes series without the label
        made.all_value(".*").current(VariableOption(text=["All"], value=["$__all"]))
    return made


class Row(NamedTuple):
    """Panels under a heading. The SDK wraps lines of panels that fill the width exactly."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


def build(
    name: str,
    title: str,
    description: str,
    variables: Sequence[dashboard.QueryVariable],
    rows: Sequence[Row],
    *,
    since: str = "now-1h",
) -> Dashboard:
    """A dashboard with the uid trainyard-NAME, linked to the other ones."""
    made = dashboard.Dashboard(title).uid(f"trainyard-{name}").description(description).version(1)
    made.tags(["trainyard"]).timezone("browser").editable().time(since, "now").refresh("30s")
    made.tooltip(DashboardCursorSync.CROSSHAIR)
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    made.with_variable(source)
    for each in variables:
        made.with_variable(each)
    link = dashboard.DashboardLink("Trainyard").type(DashboardLinkType.DASHBOARDS)
    made.link(link.tags(["trainyard"]).as_dropdown(True).include_vars(True).keep_time(True))
    ids = count(1)
    for row in rows:
        heading = dashboard.Row(row.title).id(next(ids)).collapsed(row.collapsed)
        panels = [panel.id(next(ids)) for panel in row.panels]
        # Grafana keeps the panels of a collapsed row in the row, others beside it.
        for panel in panels if row.collapsed else ():
            heading.with_panel(panel)
        made.with_row(heading)
        for panel in () if row.collapsed else panels:
            made.with_panel(panel)
    return made.build()


def _range_query(expr: str, legend: str) -> Dataquery:
    return Dataquery().expr(expr).range().legend_format(legend)


def _instant_query(expr: str) -> Dataquery:
    return Dataquery().expr(expr).instant().format(PromQueryFormat.TABLE)


def _panel(
    panel: _P, title: str, description: str, queries: Sequence[Dataquery], unit: str = "none"
) -> _P:
    for index, query in enumerate(queries):
        panel.with_target(query.ref_id(chr(ord("A") + index)).datasource(DATASOURCE))
    panel.title(title).description(description).datasource(DATASOURCE).unit(unit)
    panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
    return panel.span(8).height(8).thresholds(thresholds("green"))


def _chart(panel: _Chart, order: SortOrder) -> _Chart:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(order)
    return panel.legend(legend.placement(LegendPlacement.BOTTOM)).tooltip(tooltip)
