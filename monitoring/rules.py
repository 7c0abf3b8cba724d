"""What a Prometheus rule is, and the rules file that all of them make."""

from dataclasses import dataclass
from typing import Any, Literal

import yaml


@dataclass(frozen=True)
class Record:
    """A recording rule, named LEVEL:METRIC:OPERATION as is the custom."""

    name: str
    expr: str

    def __str__(self) -> str:
        return self.name

    def to_wire(self) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True)
class Alert:
    """An alerting rule.

    Attributes:
        value: what is watched; it has data while all is well, too.
        when: what makes it an alert: a comparison, and further conditions.
        wait: how long that must last.
        runbook: the part of our docs that says what to do.
    """

    name: str
    value: str
    when: str
    wait: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    description: str
    runbook: str

    @property
    def expr(self) -> str:
        return f"{self.value} {self.when}"

    def to_wire(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": self.runbook,
            },
        }


def rules_file(groups: dict[str, tuple[Record | Alert, ...]]) -> str:
    """A rules file for Prometheus, which is also the spec of a PrometheusRule."""
    document = {
        "groups": [
            {"name": name, "rules": [rule.to_wire() for rule in rules]}
            for name, rules in groups.items()
        ]
    }
    text: str = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    return f"# Written by `make monitoring`.\n{text}"
