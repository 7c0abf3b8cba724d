"""All shipped queries: of panels, rules, alerts and the ScaledObject of charts/serving."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitoring.__main__ import dashboards
from monitoring.alerts import ALERTS
from monitoring.rules import RECORDS

ROOT = Path(__file__).parents[3]
DOCUMENTS: dict[str, dict[str, Any]] = {
    name: json.loads(text) for name, text in dashboards().items()
}
DCGM = "DCGM_"  # the prefix of the metrics of NVIDIA's exporter
# Grafana's own variables, with the values they would have for a short time range.
_GRAFANA = {"__rate_interval": "5s", "__range": "60s", "__interval": "1s", "__interval_ms": "1000"}
# The name of one of our metrics or recording rules (with colons), and its selector, if any.
_SELECTOR = re.compile(r"(?<![\w:$])((?:\w+:)?(?:trainyard_|process_|DCGM_)[\w:]*)(\{[^}]*\})?")


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and a label that says where it comes from."""

    source: str
    expr: str

    @property
    def needs_gpu(self) -> bool:
        """It uses metrics of NVIDIA's exporter, or those that PyTorch has on GPUs only."""
        return any(
            name in self.expr for name in (DCGM, "trainyard_gpu_", "trainyard_agent_rank_gpu")
        )

    @property
    def names(self) -> set[str]:
        return {name for name, _ in _SELECTOR.findall(self.expr)}

    @property
    def selectors(self) -> list[str]:
        """The vector selectors in the expression, with their matchers."""
        return ["".join(parts) for parts in _SELECTOR.findall(self.expr)]

    def substitute(self, variables: Mapping[str, str]) -> "Query":
        """With the values of Grafana's variables and of `variables`."""
        expr = self.expr
        values = {**_GRAFANA, **variables}
        for name in sorted(values, key=len, reverse=True):
            expr = expr.replace(f"${{{name}}}", values[name]).replace(f"${name}", values[name])
        return Query(self.source, expr)


def all_panels(dashboard: str) -> list[dict[str, Any]]:
    """The rows and panels of a dashboard, including those in collapsed rows."""
    top = DOCUMENTS[dashboard]["panels"]
    return [panel for each in top for panel in [each, *each.get("panels", [])]]


def panel_queries(dashboard: str) -> Iterator[Query]:
    for panel in all_panels(dashboard):
        for target in panel.get("targets", []):
            source = f"{dashboard}: {panel['title']}, query {target['refId']}"
            yield Query(source, target["expr"])


def variable_queries(dashboard: str) -> Iterator[Query]:
    """The series whose labels the variables offer."""
    for variable in DOCUMENTS[dashboard]["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert match
            yield Query(f"{dashboard}: ${variable['name']}", match[1])


def record_queries() -> Iterator[Query]:
    for record in RECORDS:
        yield Query(record.name, record.expr)


def alert_queries() -> Iterator[Query]:
    """The value of each alert, and each selector of its whole expression."""
    for alert in ALERTS:
        yield Query(f"{alert.name}, value", alert.value)
        for selector in Query("", alert.expr).selectors:
            yield Query(f"{alert.name}, {selector}", selector)


def scaled_object_query(namespace: str, fullname: str) -> Query:
    """The query by which KEDA scales servers, as Helm would render it."""
    template = (ROOT / "charts/serving/templates/autoscaling.yaml").read_text()
    match = re.search(r"query: >-\n(.*?)\n +threshold:", template, re.S)
    assert match
    text = " ".join(match[1].split())
    text = text.replace("{{ .Release.Namespace }}", namespace)
    text = text.replace('{{ include "serving.fullname" . }}', fullname)
    assert "{{" not in text
    return Query("ScaledObject", text)


def all_queries() -> list[Query]:
    return [
        *(query for name in DOCUMENTS for query in panel_queries(name)),
        *(query for name in DOCUMENTS for query in variable_queries(name)),
        *record_queries(),
        *alert_queries(),
        scaled_object_query("ns", "app"),
    ]
