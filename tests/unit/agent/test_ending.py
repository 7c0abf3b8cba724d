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
from trainyard_lifecycle.plan import Position, RankExit
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
    ending = parse_ending(text)
    assert ending.ranks == (RankExit(3, 1, -9), RankExit(2, 0, -15))
    assert ending.message == ""


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
    ending = parse_ending(termination_message(tmp_path, 1, [FIRST]))
    assert parse_error_file(ending.message) == "ValueError: no"


def test_the_report_of_a_success_arrives(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_text(report(step=7, sample="s" * 3000))
    text = termination_message(tmp_path, 0, [WELL])
    ending = parse_ending(text)
    assert ending.ranks == ()
    found = ProgressReport.model_validate_json(ending.message)
    assert (found.step, found.sample) == (7, "s" * 3000)


def test_a_report_that_is_too_long_drops_its_sample_first(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_text(report(step=7, sample="s" * 5000, message="m" * 100))
    text = termination_message(tmp_path, 0, [])
    assert len(text.encode()) <= MAX_BYTES
    found = ProgressReport.model_validate_json(parse_ending(text).message)
    assert (found.step, found.sample, found.message) == (7, None, "m" * 100)


def group(name: str, *ranks: int) -> dict[str, Any]:
    at = {"seq": 7, "op": "all_reduce", "where": "a.py:1 f", "waiting": 600.0, "limit": 600.0}
    return {"group": name, "at": [{"ranks": list(ranks), **at}]}


def test_where_the_ranks_were_arrives_as_far_as_there_is_room(tmp_path: Path) -> None:
    large = group("mesh", *range(2000))
    text = termination_message(tmp_path, 1, [FIRST], [group("default_pg", 0, 3), large])
    assert len(text.encode()) <= MAX_BYTES
    position = Position("default_pg", (0, 3), 7, "all_reduce", "a.py:1 f", 600.0, 600.0)
    assert parse_ending(text).collectives == (position,)


ROW = group("default_pg", 0)["at"][0]


@pytest.mark.parametrize(
    "groups",
    [
        7,
        "groups",
        {"group": "x"},
        [7],
        [{"group": "x", "at": [{**ROW, "ranks": []}]}],
        [{"group": "x", "at": [{**ROW, "waiting": "long"}]}],
        [{"group": "x", "at": [{**ROW, "limit": float("nan")}]}],
        [{"group": "x", "at": [{**ROW, "seq": float("inf")}]}],
        [{"group": "x", "at": [{"ranks": [0]}]}],
    ],
)
def test_what_does_not_say_where_ranks_were_is_ignored(groups: Any) -> None:
    text = json.dumps({"exitCode": 1, "ranks": [FIRST], "collectives": groups})
    assert parse_ending(text) == ((RankExit(3, 1, -9),), (), "")


@pytest.mark.parametrize("character", ["x", "é", "错", "😀", "\\", "\n.", "\x01", "\udc80"])
def test_a_long_error_of_any_characters_fits(tmp_path: Path, character: str) -> None:
    (tmp_path / ERROR_FILE).write_text(json.dumps({"message": f"ValueError: {character * 3000}"}))
    ranks = [{**FIRST, "rank": rank} for rank in range(200)]
    text = termination_message(tmp_path, 1, ranks)
    wire = text.encode(errors="replace")
    assert len(wire) <= MAX_BYTES
    ending = parse_ending(wire.decode())
    assert len(ending.ranks) == MAX_RANKS
    assert str(parse_error_file(ending.message)).startswith("ValueError:")


def test_a_command_that_cannot_be_started_is_an_error_of_its_own(tmp_path: Path) -> None:
    record_error(tmp_path, "StartError: the container can't be started: torchrun: No such file")
    ending = parse_ending(termination_message(tmp_path, 127, []))
    assert str(parse_error_file(ending.message)).startswith("StartError: ")


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
    assert len(parse_ending(text).ranks) > 0


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
    assert parse_ending(text) == ((), (), text)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"message": []}', '{"message": {}}'])
def test_a_file_without_an_error_has_none(text: str) -> None:
    assert recorded_error(text) is None
