"""Every query that is shipped: of panels, rules, alerts and the ScaledObject of charts/serving."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from monitoring import gpu
from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.records import RECORDS

ROOT = Path(__file__).parents[3]
# Grafana's own variables, as a short time range would have them.
_GRAFANA = {"__rate_interval": "5s", "__range": "60s", "__interval": "1s", "__interval_ms": "1000"}
# A name of ours (a recording rule's has colons) and the selector that may follow it.
_SELECTOR = re.compile(r"(?<![\w:$])((?:\w+:)?(?:trainyard_|process_|DCGM_)[\w:]*)(\{[^}]*\})?")


@dataclass(frozen=True)
class Asked:
    """A query, and where it stands."""

    where: str
    expr: str

    @property
    def needs_gpu(self) -> bool:
        """It asks NVIDIA's exporter, or for what PyTorch tells on GPUs only."""
        return gpu.PREFIX in self.expr or "trainyard_gpu_memory_bytes" in self.expr

    @property
    def names(self) -> set[str]:
        return {name for name, _ in _SELECTOR.findall(self.expr)}

    @property
    def selectors(self) -> list[str]:
        """The vector selectors in it, matchers included."""
        return ["".join(found) for found in _SELECTOR.findall(self.expr)]

    def filled(self, variables: Mapping[str, str]) -> "Asked":
        """With values in the place of variables."""
        expr = self.expr
        values = {**_GRAFANA, **variables}
        for name in sorted(values, key=len, reverse=True):
            expr = expr.replace(f"${{{name}}}", values[name]).replace(f"${name}", values[name])
        return Asked(self.where, expr)


def panels(dashboard: str) -> Iterator[Asked]:
    """Every query of a dashboard's panels."""
    (found,) = (each for each in DASHBOARDS if each.name == dashboard)
    for panel in found.panels:
        for number, query in enumerate(panel.queries, 1):
            yield Asked(f"{dashboard}: {panel.title}, query {number}", query.expr)


def records() -> Iterator[Asked]:
    for record in RECORDS:
        yield Asked(record.name, record.expr)


def alerts() -> Iterator[Asked]:
    """What each alert watches, and every selector of its whole expression."""
    for alert in ALERTS:
        yield Asked(f"{alert.name}, what it watches", alert.value)
        for selector in Asked("", alert.expr).selectors:
            yield Asked(f"{alert.name}, {selector}", selector)


def scaled_object(namespace: str, fullname: str) -> Asked:
    """The query by which KEDA scales servers, as Helm would render it."""
    template = (ROOT / "charts/serving/templates/autoscaling.yaml").read_text()
    found = re.search(r"query: >-\n(.*?)\n +threshold:", template, re.S)
    assert found
    text = " ".join(found[1].split())
    text = text.replace("{{ .Release.Namespace }}", namespace)
    text = text.replace('{{ include "serving.fullname" . }}', fullname)
    assert "{{" not in text
    return Asked("ScaledObject", text)


def everything() -> list[Asked]:
    found = [asked for dashboard in DASHBOARDS for asked in panels(dashboard.name)]
    variables = [
        Asked(f"{dashboard.name}: ${variable.name}", variable.metric)
        for dashboard in DASHBOARDS
        for variable in dashboard.variables
    ]
    return [*found, *variables, *records(), *alerts(), scaled_object("ns", "app")]
