"""Dashboards as Grafana reads them: typed parts, and the JSON that they become.

https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]

SCHEMA_VERSION = 42  # of @grafana/schema 13
WIDTH = 24  # Grafana's grid
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "table", "barchart", "trend"]
Steps = tuple[tuple[float | None, str], ...]  # from this value on, this colour


@dataclass(frozen=True)
class Query:
    """One PromQL query of a panel.

    Attributes:
        legend: Grafana's template of a series' name, such as `{{run}}`.
        instant: the values of now only, as rows of a table.
    """

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is Grafana's id of it: s, bytes, percentunit, reqps, short, none ..."""

    title: str
    description: str
    queries: tuple[Query, ...] = ()
    unit: str = "none"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    least: float | None = 0  # the axis begins here; None: where the values do
    most: float | None = None
    stacked: bool = False
    decimals: int | None = None
    steps: Steps = ((None, "green"),)
    transformations: tuple[Json, ...] = ()
    overrides: tuple[Json, ...] = ()
    options: Json = field(default_factory=dict)

    def to_json(self, number: int, x: int, y: int) -> Json:
        """The panel at a place of the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "options": _OPTIONS[self.kind] | self.options,
            "datasource": DATASOURCE,
            "targets": [
                _target(query, chr(ord("A") + place)) for place, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": list(self.overrides)},
            "transformations": list(self.transformations),
        }

    def _defaults(self) -> Json:
        thresholds = [{"value": value, "color": color} for value, color in self.steps]
        defaults: Json = {
            "unit": self.unit,
            "thresholds": {"mode": "absolute", "steps": thresholds},
            "color": {"mode": "thresholds" if self.kind == "stat" else "palette-classic"},
        }
        if self.kind == "barchart":
            defaults["custom"] = {"lineWidth": 1, "fillOpacity": 70}
        elif self.kind in ("timeseries", "trend"):
            defaults["custom"] = {
                "lineWidth": 2,
                "fillOpacity": 30 if self.stacked else 0,
                "showPoints": "always" if self.kind == "trend" else "auto",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "spanNulls": False,
            }
        for key, value in (("min", self.least), ("max", self.most), ("decimals", self.decimals)):
            if value is not None:
                defaults[key] = value
        return defaults


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str = "none",
    *,
    legend: str = "",
    width: int = 4,
    decimals: int | None = None,
    steps: Steps = ((None, "green"),),
) -> Panel:
    """One number (for each series) as of now."""
    return Panel(
        title,
        description,
        (Query(expr, legend),),
        unit,
        kind="stat",
        width=width,
        height=4,
        least=None,
        decimals=decimals,
        steps=steps,
    )


@dataclass(frozen=True)
class Row:
    """Panels under a heading, from left to right and on."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A choice above the panels: the values of `label` in the series of `metric`."""

    name: str
    label: str
    metric: str
    title: str
    several: bool = False
    regex: str = ""

    def to_json(self) -> Json:
        query = f"label_values({self.metric}, {self.label})"
        json: Json = {
            "name": self.name,
            "label": self.title,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": "variable", "qryType": 1},
            "regex": self.regex,
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": self.several,
            "includeAll": self.several,
        }
        if self.several:
            # Everything: also series that lack the label.
            json |= {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
        return json


@dataclass(frozen=True)
class Dashboard:
    """A whole dashboard; its name is that of its file, and its uid is trainyard-NAME."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    since: str = "now-1h"

    @property
    def panels(self) -> list[Panel]:
        """Every panel, those in collapsed rows too."""
        return [panel for row in self.rows for panel in row.panels]

    def to_json(self) -> Json:
        """What Grafana imports."""
        return {
            "uid": f"trainyard-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["trainyard"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one crosshair in all panels
            "time": {"from": self.since, "to": "now"},
            "refresh": "30s",
            "timezone": "browser",
            "templating": {"list": [_DATASOURCES, *(v.to_json() for v in self.variables)]},
            "annotations": {"list": []},
            "links": [_LINKS],
            "panels": self._placed(),
        }

    def _placed(self) -> list[Json]:
        placed: list[Json] = []
        number = y = 0
        for row in self.rows:
            number += 1
            heading: Json = {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
            placed.append(heading)
            y += 1
            x = tallest = 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                number += 1
                (heading["panels"] if row.collapsed else placed).append(panel.to_json(number, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return placed


def column(name: str, **properties: Any) -> Json:
    """Settings of one field of a panel."""
    wanted = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": wanted}


def organised(names: dict[str, str], hidden: tuple[str, ...] = ()) -> Json:
    """Fields in this order and under these names; `hidden` ones are dropped."""
    return {
        "id": "organize",
        "options": {
            "renameByName": names,
            "indexByName": {name: place for place, name in enumerate(names)},
            "excludeByName": dict.fromkeys(hidden, True),
        },
    }


_OPTIONS: dict[Kind, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "auto",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "barchart": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "none"},
    },
    "trend": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "none"},
    },
}
_DATASOURCES: Json = {
    "name": "datasource",
    "label": "Prometheus",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
}
_LINKS: Json = {
    "type": "dashboards",
    "title": "Trainyard",
    "tags": ["trainyard"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
}


def _target(query: Query, ref: str) -> Json:
    target: Json = {"refId": ref, "datasource": DATASOURCE, "expr": query.expr}
    if query.instant:
        return target | {"instant": True, "range": False, "format": "table"}
    return target | {"instant": False, "range": True, "legendFormat": query.legend or "__auto"}
