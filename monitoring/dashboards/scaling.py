"""Results of a ScalingStudy: speedup, efficiency and cost, measured and projected."""

from grafana_foundation_sdk.builders.trend import Panel as Trend
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

from monitoring import rules as r
from monitoring.grafana import (
    MERGE,
    Row,
    build,
    columns,
    properties,
    stat,
    table,
    timeseries,
    trend,
    variable,
)
from trainyard_api import metrics as m

_STUDY = 'namespace="$namespace",study="$study"'
_CONFIGURATION = f'{_STUDY},configuration="$configuration"'
_NOTE = (
    "Measured points are medians of the study's repeats. Projected points follow from the scaling"
    " law fitted to them; no run has measured them. Sizes for which the study gives only a wide"
    " range are left out: see its status."
)


def _by_size(metric: m.Metric, source: str = "") -> str:
    """A result of the selected configuration, by number of processes."""
    matcher = f',source="{source}"' if source else ""
    return f"max by (processes) ({metric}{{{_CONFIGURATION}{matcher}}})"


def _both(metric: m.Metric) -> dict[str, str]:
    return {source.capitalize(): _by_size(metric, source) for source in ("measured", "projected")}


def _best(metric: m.Metric, source: str) -> str:
    return f'max({metric}{{{_STUDY},source="{source}"}})'


def _curve(title: str, description: str, queries: dict[str, str], unit: str = "none") -> Trend:
    """Lines over the number of processes, by name; those that are not measured are dashed."""
    panel = trend(title, description, "Processes", *queries.values(), unit=unit)
    values = {f"Value #{letter}": name for letter, name in zip("ABC", queries, strict=False)}
    times = [f"Time {number}" for number in range(1, len(queries) + 1)]
    to_number = {"targetField": "processes", "destinationType": "number"}
    for name, options in (
        ("joinByField", {"byField": "processes", "mode": "outer"}),
        ("convertFieldType", {"conversions": [to_number], "fields": {}}),
        ("sortBy", {"fields": {}, "sort": [{"field": "processes"}]}),
    ):
        panel.with_transformation(DataTransformerConfig(name, options=options))
    panel.with_transformation(columns({"processes": "Processes"} | values, ["Time", *times]))
    dashed = properties(custom__lineStyle={"fill": "dash", "dash": [8, 8]})
    for name in (name for name in queries if name != "Measured"):
        panel.override_by_name(name, dashed)
    return panel.span(12).height(10)


_SUMMARY = Row(
    "Study",
    (
        stat(
            "Best speedup, measured",
            "Throughput / throughput at the smallest size; best of all configurations.",
            _best(m.STUDY_SPEEDUP, "measured"),
        )
        .span(6)
        .decimals(2),
        stat(
            "Best speedup, projected",
            "The best speedup among the sizes that the study projects.",
            _best(m.STUDY_SPEEDUP, "projected"),
        )
        .span(6)
        .decimals(2),
        stat(
            "Lowest efficiency, measured",
            "Throughput per process / throughput per process at the smallest size.",
            f'min({m.STUDY_EFFICIENCY}{{{_STUDY},source="measured"}})',
            "percentunit",
        )
        .span(6)
        .decimals(0),
        stat(
            "Studies by phase",
            "In all namespaces.",
            f"sum by (phase) ({m.STUDIES})",
            legend="{{phase}}",
        ).span(6),
    ),
)
_SCALING = Row(
    "Scaling",
    (
        _curve(
            "Speedup against ideal",
            _NOTE,
            _both(m.STUDY_SPEEDUP)
            | {"Ideal": f"{_by_size(m.STUDY_SPEEDUP)} / {_by_size(m.STUDY_EFFICIENCY)}"},
        ),
        _curve(
            "Efficiency",
            "Throughput per process / throughput per process at the smallest size; 100% is ideal."
            f" {_NOTE}",
            _both(m.STUDY_EFFICIENCY),
            "percentunit",
        ),
        _curve(
            "Throughput",
            f"Tokens per second, or samples per second for recipes without tokens. {_NOTE}",
            {
                name: f"{tokens} or {_both(m.STUDY_SAMPLES_PER_SECOND)[name]}"
                for name, tokens in _both(m.STUDY_TOKENS_PER_SECOND).items()
            },
            "short",
        ),
        _curve(
            "Cost per million",
            "Cost of a million tokens, or samples for recipes without tokens, at the price that"
            f" the study specifies. {_NOTE}",
            _both(m.STUDY_COST),
        ),
    ),
)


def _point(metric: m.Metric, *labels: str) -> str:
    by = ", ".join(("configuration", "processes", "source", *labels))
    return f"max by ({by}) ({metric}{{{_STUDY}}})"


_TABLE = Row(
    "All results",
    (
        table(
            "Results",
            f"Throughput is in tokens per second, or samples per second. {_NOTE}",
            f"{_point(m.STUDY_TOKENS_PER_SECOND)} or {_point(m.STUDY_SAMPLES_PER_SECOND)}",
            _point(m.STUDY_SPEEDUP),
            _point(m.STUDY_EFFICIENCY),
            _point(m.STUDY_COST, "unit", "currency"),
        )
        .height(10)
        .with_transformation(MERGE)
        .with_transformation(
            columns(
                {
                    "configuration": "Configuration",
                    "processes": "Processes",
                    "source": "Source",
                    "Value #A": "Throughput",
                    "Value #B": "Speedup",
                    "Value #C": "Efficiency",
                    "Value #D": "Cost per million",
                    "unit": "Unit",
                    "currency": "Currency",
                },
                hidden=["Time"],
            )
        )
        .override_by_name("Throughput", properties(unit="short", decimals=1))
        .override_by_name("Speedup", properties(decimals=2))
        .override_by_name("Efficiency", properties(unit="percentunit", decimals=0))
        .override_by_name("Cost per million", properties(decimals=4)),
    ),
)
_IN_STUDY = f'{{namespace="$namespace"}} and on (namespace, run) {m.RUN_STUDY}{{{_STUDY}}}'
_RUNS = Row(
    "Current runs of this study",
    (
        timeseries(
            "Throughput against the study",
            "Throughput of the runs labeled with this study / what the study measured or projected"
            " for the same number of processes.",
            {"{{run}}": f"{r.STUDY_RATIO}{_IN_STUDY}"},
            "percentunit",
        ).span(12),
        timeseries(
            "Efficiency",
            "Throughput per process / the study's throughput per process at its smallest size.",
            {"{{run}}": f"{r.EFFICIENCY}{_IN_STUDY}"},
            "percentunit",
        ).span(12),
    ),
)

SCALING = build(
    "scaling",
    "Trainyard / Scaling",
    "Speedup, efficiency and cost by number of processes, measured and projected.",
    (
        variable("namespace", "Namespace", m.STUDY_SPEEDUP.name),
        variable("study", "Study", f'{m.STUDY_SPEEDUP}{{namespace="$namespace"}}'),
        variable("configuration", "Configuration", f"{m.STUDY_SPEEDUP}{{{_STUDY}}}"),
    ),
    (_SUMMARY, _SCALING, _TABLE, _RUNS),
)
