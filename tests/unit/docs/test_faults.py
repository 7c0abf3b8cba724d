"""The corpus of faults is whole: every fault has its levels, and the tests that it names exist."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from tests.faults.corpus import FILES, FOLDER, Fault, faults, rows
from trainyard_api.policy import FailureReason

ROOT = Path(__file__).parents[3]


def test_every_file_is_read() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(FILES)


def test_a_name_names_one_fault() -> None:
    names = [fault.name for fault in faults()]
    assert len(names) == len(set(names)) > 40


def test_every_reason_of_a_failure_has_a_fault() -> None:
    assert {fault.row.reason for fault in faults()} >= set(get_args(FailureReason))


def test_every_recorded_log_is_used() -> None:
    used = {seen.log for fault in faults() for seen in fault.case.seen}
    assert {path.name for path in (FOLDER / "logs").iterdir()} <= used


@pytest.mark.parametrize("fault", faults(), ids=str)
def test_the_tests_that_show_a_fault_exist(fault: Fault) -> None:
    for name in fault.case.tests:
        path, _, function = name.partition("::")
        defined = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert function in defined, name


def test_real_processes_show_more_than_forty_faults() -> None:
    def is_local(name: str) -> bool:
        return not name.startswith("tests/e2e")

    real = [f for f in faults() if f.case.local or any(map(is_local, f.case.tests))]
    assert len(real) > 40


def test_no_row_is_without_a_case() -> None:
    assert [row.see for file in FILES for row in rows(file) if not row.cases] == []
