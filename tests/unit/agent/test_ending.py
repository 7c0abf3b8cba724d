"""A pod's termination message: written by the agent, read by the operator, whatever is in it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard_agent.ending import (
    MAX_BYTES,
    MAX_RANKS,
    record_error,
    recorded_error,
    termination_message,
)
from trainyard_api.job import ERROR_FILE, RESULT_FILE
from trainyard_api.progress import ProgressReport
from trainyard_lifecycle.agent_output import parse_ending
from trainyard_lifecycle.plan import RankExit
from trainyard_lifecycle.torchrun_output import parse_error_file

FIRST = {"rank": 3, "localRank": 1, "exitCode": -9}
SECOND = {"rank": 2, "localRank": 0, "exitCode": -15}
WELL = {"rank": 1, "localRank": 0, "exitCode": 0}
UNKNOWN = {"rank": 4, "localRank": 2, "exitCode": None}


def report(**values: Any) -> str:
    known = {"run": "r", "attempt": 1, "phase": "finished", "ranks_joined": 2, "world_size": 2}
    made = ProgressReport(**known, time=datetime.now(UTC), **values)
    return made.model_dump_json(by_alias=True, exclude_none=True)


def test_the_ranks_that_failed_arrive_in_their_order(tmp_path: Path) -> None:
    text = termination_message(tmp_path, 1, [FIRST, SECOND, WELL, UNKNOWN])
    ranks, message = parse_ending(text)
    assert ranks == (RankExit(3, 1, -9), RankExit(2, 0, -15))
    assert message == ""


@pytest.mark.parametrize("file", [ERROR_FILE, RESULT_FILE])
@pytest.mark.parametrize(
    "recorded",
    [
        {"message": {"message": "ValueError: no", "extraInfo": {"py_callstack": "x" * 9000}}},
        {"message": "Traceback (most recent call last):\n  File ...\nValueError: no\n"},
    ],
)
def test_an_exception_arrives_as_torchelastic_records_it(
    tmp_path: Path, file: str, recorded: dict[str, Any]
) -> None:
    """torchrun copies its file; the trainer writes its own account."""
    (tmp_path / file).write_text(json.dumps(recorded))
    _, message = parse_ending(termination_message(tmp_path, 1, [FIRST]))
    assert parse_error_file(message) == "ValueError: no"


def test_the_report_of_a_success_arrives(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_text(report(step=7, sample="s" * 3000))
    text = termination_message(tmp_path, 0, [WELL])
    ranks, message = parse_ending(text)
    assert ranks == ()
    found = ProgressReport.model_validate_json(message)
    assert (found.step, found.sample) == (7, "s" * 3000)


def test_a_report_that_is_too_long_drops_its_sample_first(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_text(report(step=7, sample="s" * 5000, message="m" * 100))
    text = termination_message(tmp_path, 0, [])
    assert len(text.encode()) <= MAX_BYTES
    found = ProgressReport.model_validate_json(parse_ending(text)[1])
    assert (found.step, found.sample, found.message) == (7, None, "m" * 100)


@pytest.mark.parametrize("character", ["x", "é", "错", "😀", "\\", "\n.", "\x01", "\udc80"])
def test_a_long_error_of_any_characters_fits(tmp_path: Path, character: str) -> None:
    (tmp_path / ERROR_FILE).write_text(json.dumps({"message": f"ValueError: {character * 3000}"}))
    ranks = [{**FIRST, "rank": rank} for rank in range(200)]
    text = termination_message(tmp_path, 1, ranks)
    wire = text.encode(errors="replace")
    assert len(wire) <= MAX_BYTES
    found, message = parse_ending(wire.decode())
    assert len(found) == MAX_RANKS
    assert str(parse_error_file(message)).startswith("ValueError:")


def test_a_command_that_cannot_be_started_is_an_error_of_its_own(tmp_path: Path) -> None:
    record_error(tmp_path, "StartError: the container can't be started: torchrun: No such file")
    _, message = parse_ending(termination_message(tmp_path, 127, []))
    assert str(parse_error_file(message)).startswith("StartError: ")


@given(st.text(max_size=9000), st.text(max_size=9000), st.integers(0, 255))
def test_the_message_fits_and_can_be_read_for_any_result_file(
    tmp_path_factory: pytest.TempPathFactory, error: str, result: str, code: int
) -> None:
    directory = tmp_path_factory.mktemp("worker")
    (directory / ERROR_FILE).write_text(json.dumps({"message": error}), errors="replace")
    (directory / RESULT_FILE).write_text(json.dumps({"message": result}), errors="replace")
    ranks = [{**FIRST, "rank": rank} for rank in range(200)]
    text = termination_message(directory, code, ranks)
    assert len(text.encode(errors="replace")) <= MAX_BYTES
    assert len(parse_ending(text)[0]) > 0


NOT_THE_AGENTS = (
    "",
    "{",
    "null",
    "[]",
    "7",
    '{"run": "r"}',
    '{"exitCode": "x"}',
    '{"exitCode": 1}',
    '{"exitCode": 1, "ranks": 3}',
    '{"exitCode": 1, "ranks": [{}]}',
    "[" * 9000,
)


@pytest.mark.parametrize("text", NOT_THE_AGENTS)
def test_a_message_not_written_by_an_agent_is_unchanged(text: str) -> None:
    assert parse_ending(text) == ((), text)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"message": []}', '{"message": {}}'])
def test_a_file_without_an_error_has_none(text: str) -> None:
    assert recorded_error(text) is None
