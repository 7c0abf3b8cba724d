"""docs/reference/metrics.md: every metric with its labels and their bounds."""

from monitoring.records import RECORDS
from trainyard_api.metrics import ALL, Label, Metric, Part

HEAD = """\
# Metrics

Names follow [Prometheus' conventions](https://prometheus.io/docs/practices/naming/): base units,
`_total` for counters. What isn't known yet is absent, never 0. How to scrape them, and the
dashboards and alerts that are made of them: [monitoring.md](../operate/monitoring.md). This page is
generated from the code by `make reference`.

Of every label the page says where its values come from and how many of them **one process** exports
at most. A test scrapes real processes and holds them to it.
"""
PARTS: dict[Part, str] = {
    "trainer": "Rank 0 of a run, port 9400. A scrape adds `namespace` and `pod`.",
    "operator": "Every replica, port 8080. Series that name a run or a study name its `namespace`"
    " as well, which is not the operator's: scrape with `honor_labels`.",
    "serving": "Every server, at its own port. A scrape adds `namespace` and `pod`.",
    "all": "Of the process itself, in all three.",
}
TITLES: dict[Part, str] = {
    "trainer": "Trainer",
    "operator": "Operator",
    "serving": "Serving",
    "all": "Processes",
}


def reference() -> str:
    """The page, Markdown."""
    parts = [HEAD]
    for part, where in PARTS.items():
        metrics = [metric for metric in ALL if metric.part == part]
        parts.append(
            f"\n## {TITLES[part]}\n\n{where}\n\n"
            "| metric | kind | labels | description |\n|---|---|---|---|\n"
        )
        parts += [_row(metric) for metric in metrics]
        labels = {(label, label.values): label for metric in metrics for label in metric.labels}
        if labels:
            parts.append("\n| label | its values | at most |\n|---|---|---|\n")
            parts += [_bound(label) for label in labels.values()]
    parts.append(
        "\n## Recorded\n\nBy the rules that charts/operator ships; the dashboards need them.\n\n"
        "| recording rule | expression |\n|---|---|\n"
    )
    parts += [f"| `{rule.name}` | `{_cell(rule.expr)}` |\n" for rule in RECORDS]
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |\n"


def _bound(label: Label) -> str:
    return f"| `{label}` | {_cell(label.values)} | {label.at_most} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
