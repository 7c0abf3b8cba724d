"""The rules, run by promtool on the series of rule_cases.py and alert_cases.py."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monitoring.alerts import ALERTS
from monitoring.rules import RECORDS, Alert, Record, rules_file
from tests.unit.monitoring.alert_cases import ALERT_CASES
from tests.unit.monitoring.rule_cases import RECORD_CASES, Case, selector

ROOT = Path(__file__).parents[3]
SEVERITY = {alert.name: alert.severity for alert in ALERTS}


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH (Debian: apt-get install prometheus)")
    return program


def to_promtool(case: Case) -> dict[str, object]:
    """A unit test for promtool; a firing alert is a series named ALERTS."""
    if case.rule in SEVERITY:
        extra = {"alertname": case.rule, "alertstate": "firing", "severity": SEVERITY[case.rule]}
        series = selector("ALERTS", {key: extra[key] for key in ("alertname", "alertstate")})
    else:
        series, extra = case.rule, {}
    samples = [
        {"labels": selector("", {**labels, **extra}), "value": round(value, 3)}
        for labels, value in case.samples
    ]
    return {
        "name": f"{case.rule}: {case.description}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series],
        "promql_expr_test": [
            {"expr": f"round({series}, 0.001)", "eval_time": case.at, "exp_samples": samples}
        ],
    }


def with_dependencies(rule: Record | Alert) -> tuple[Record | Alert, ...]:
    """The recording rules that a rule uses, then the rule. Evaluating all would take 30 s."""
    used = [
        with_dependencies(record)
        for record in RECORDS
        if record is not rule and record.name in rule.expr
    ]
    return (*itertools.chain(*used), rule)


def test_rules_give_the_expected_samples(promtool: str, tmp_path: Path) -> None:
    tests = []
    for rule in (*RECORDS, *ALERTS):
        (tmp_path / f"{rule.name}.rules").write_text(rules_file({"rules": with_dependencies(rule)}))
        cases = [case for case in (*RECORD_CASES, *ALERT_CASES) if case.rule == rule.name]
        document = {
            "rule_files": [f"{rule.name}.rules"],
            "evaluation_interval": "5m",
            "tests": [to_promtool(case) for case in cases],
        }
        tests.append(f"{rule.name}.json")
        (tmp_path / tests[-1]).write_text(json.dumps(document))
    command = [promtool, "test", "rules", *tests]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in RECORD_CASES} == {record.name for record in RECORDS}
    for alert in ALERTS:
        cases = [case for case in ALERT_CASES if case.rule == alert.name]
        assert any(case.samples for case in cases), f"{alert.name} fires in no case"
        assert any(not case.samples for case in cases), f"{alert.name} fires in all cases"


def test_promtool_accepts_the_shipped_file(promtool: str) -> None:
    file = ROOT / "charts" / "operator" / "rules" / "trainyard.yaml"
    command = [promtool, "check", "rules", "--lint-fatal", str(file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_runbooks_exist_in_the_docs() -> None:
    for alert in ALERTS:
        file, _, anchor = alert.runbook.partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.M)
        anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        assert anchor in anchors, f"{alert.name}: {alert.runbook}"
