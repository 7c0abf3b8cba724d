"""What ScalingStudies found: speedup and efficiency against ideal, cost, projections."""

from monitoring import records as r
from monitoring.grafana import Dashboard, Json, Panel, Query, Row, Variable, column, organised, stat
from trainyard_api import metrics as m

_STUDY = 'namespace="$namespace",study="$study"'
_OF = f'{_STUDY},configuration="$configuration"'
_BY = "by (processes)"


def _at(metric: m.Metric, source: str = "") -> str:
    """A result by number of processes."""
    chosen = f',source="{source}"' if source else ""
    return f"max {_BY} ({metric}{{{_OF}{chosen}}})"


def _best(metric: m.Metric, source: str) -> str:
    return f'max({metric}{{{_STUDY},source="{source}"}})'


def _by_processes(*names: str) -> tuple[Json, ...]:
    """One row per number of processes, in order, and a column per query."""
    columns = {f"Value #{chr(ord('A') + place)}": name for place, name in enumerate(names)}
    if len(names) == 1:
        columns = {"Value": names[0]}
    times = ("Time", *(f"Time {place + 1}" for place in range(len(names))))
    return (
        {"id": "joinByField", "options": {"byField": "processes", "mode": "outer"}},
        {
            "id": "convertFieldType",
            "options": {
                "conversions": [{"targetField": "processes", "destinationType": "number"}],
                "fields": {},
            },
        },
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "processes"}]}},
        organised({"processes": "Processes"} | columns, times),
    )


def _curve(title: str, description: str, unit: str, queries: dict[str, str]) -> Panel:
    dashed = {"fill": "dash", "dash": [8, 8]}
    return Panel(
        title,
        description,
        tuple(Query(expr, instant=True) for expr in queries.values()),
        unit,
        kind="trend",
        width=12,
        height=10,
        transformations=_by_processes(*queries),
        overrides=tuple(
            column(name, custom__lineStyle=dashed) for name in queries if name != "Measured"
        ),
        options={"xField": "Processes"},
    )


_IDEAL = f"{_at(m.STUDY_SPEEDUP)} / {_at(m.STUDY_EFFICIENCY)}"
_MARKED = (
    "Measured points are medians of the study's repeats; projected ones follow from the law that"
    " was fitted to them, and no run has ever shown them. Sizes that the study only knows a wide"
    " range for are left out: see its status."
)

_NOW = Row(
    "The study",
    (
        stat(
            "Best speedup, measured",
            "Throughput / that of the smallest size; of all configurations.",
            _best(m.STUDY_SPEEDUP, "measured"),
            "none",
            width=6,
            decimals=2,
        ),
        stat(
            "Best speedup, projected",
            "As far as the study was asked to project.",
            _best(m.STUDY_SPEEDUP, "projected"),
            "none",
            width=6,
            decimals=2,
        ),
        stat(
            "Lowest efficiency, measured",
            "Throughput per process / that of the smallest size.",
            f'min({m.STUDY_EFFICIENCY}{{{_STUDY},source="measured"}})',
            "percentunit",
            width=6,
            decimals=0,
        ),
        stat(
            "Studies",
            "In all namespaces, by phase.",
            f"sum by (phase) ({m.STUDIES})",
            legend="{{phase}}",
            width=6,
        ),
    ),
)
_SCALING = Row(
    "How it scales",
    (
        _curve(
            "Speedup against ideal",
            _MARKED,
            "none",
            {
                "Measured": _at(m.STUDY_SPEEDUP, "measured"),
                "Projected": _at(m.STUDY_SPEEDUP, "projected"),
                "Ideal": _IDEAL,
            },
        ),
        _curve(
            "Efficiency",
            f"Throughput per process / that of the smallest size: ideal is 100%. {_MARKED}",
            "percentunit",
            {
                "Measured": _at(m.STUDY_EFFICIENCY, "measured"),
                "Projected": _at(m.STUDY_EFFICIENCY, "projected"),
            },
        ),
        _curve(
            "Throughput",
            f"Tokens per second, or samples where the recipe has no tokens. {_MARKED}",
            "short",
            {
                source.capitalize(): f"{_at(m.STUDY_TOKENS_PER_SECOND, source)}"
                f" or {_at(m.STUDY_SAMPLES_PER_SECOND, source)}"
                for source in ("measured", "projected")
            },
        ),
        _curve(
            "Cost of a million",
            f"Tokens, or samples where there are none, at the price the study names. {_MARKED}",
            "none",
            {
                "Measured": _at(m.STUDY_COST, "measured"),
                "Projected": _at(m.STUDY_COST, "projected"),
            },
        ),
    ),
)
_POINTS = ("configuration", "processes", "source")


def _point(metric: m.Metric, *more: str) -> str:
    by = ", ".join((*_POINTS, *more))
    return f"max by ({by}) ({metric}{{{_STUDY}}})"


_TABLE = Row(
    "Every point",
    (
        Panel(
            "Results",
            f"Throughput in tokens, or samples, per second. {_MARKED}",
            (
                Query(
                    f"{_point(m.STUDY_TOKENS_PER_SECOND)} or {_point(m.STUDY_SAMPLES_PER_SECOND)}",
                    instant=True,
                ),
                Query(_point(m.STUDY_SPEEDUP), instant=True),
                Query(_point(m.STUDY_EFFICIENCY), instant=True),
                Query(_point(m.STUDY_COST, "unit", "currency"), instant=True),
            ),
            kind="table",
            width=24,
            height=10,
            least=None,
            transformations=(
                {"id": "merge", "options": {}},
                organised(
                    {
                        "configuration": "Configuration",
                        "processes": "Processes",
                        "source": "Measured or projected",
                        "Value #A": "Per second",
                        "Value #B": "Speedup",
                        "Value #C": "Efficiency",
                        "Value #D": "Cost of a million",
                        "unit": "of",
                        "currency": "Currency",
                    },
                    hidden=("Time",),
                ),
            ),
            overrides=(
                column("Per second", unit="short", decimals=1),
                column("Speedup", decimals=2),
                column("Efficiency", unit="percentunit", decimals=0),
                column("Cost of a million", decimals=4),
            ),
        ),
    ),
)
_LIVE = Row(
    "Runs of today",
    (
        Panel(
            "Runs beside the study",
            "Throughput of the runs labelled with this study / what it found, or projected, for as"
            " many processes.",
            (
                Query(
                    f'{r.OF_STUDY}{{namespace="$namespace"}} and on (namespace, run)'
                    f" {m.RUN_STUDY}{{{_STUDY}}}",
                    "{{run}}",
                ),
            ),
            "percentunit",
            width=12,
        ),
        Panel(
            "Efficiency of runs",
            "Throughput per process / that of the study at its smallest size.",
            (
                Query(
                    f'{r.EFFICIENCY}{{namespace="$namespace"}} and on (namespace, run)'
                    f" {m.RUN_STUDY}{{{_STUDY}}}",
                    "{{run}}",
                ),
            ),
            "percentunit",
            width=12,
        ),
    ),
)

SCALING = Dashboard(
    "scaling",
    "Trainyard / Scaling",
    "Speedup, efficiency and cost by number of processes, measured and projected.",
    (
        Variable("namespace", "namespace", m.STUDY_SPEEDUP.name, "Namespace"),
        Variable("study", "study", f'{m.STUDY_SPEEDUP}{{namespace="$namespace"}}', "Study"),
        Variable(
            "configuration", "configuration", f"{m.STUDY_SPEEDUP}{{{_STUDY}}}", "Configuration"
        ),
    ),
    (_NOW, _SCALING, _TABLE, _LIVE),
)
