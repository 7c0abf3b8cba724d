"""The table of `make gpu` calls a wrong figure wrong, and a check that breaks ends no other."""

import argparse
import json
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.gpu import __main__ as program
from tests.gpu import checkout, faults
from tests.gpu.rows import Row, at_least, close, falls, figure, near, not_here, same, says
from tests.gpu.setting import Setting
from tests.gpu.throughput import GPT2, flop_per_token

LOSSES = {1: 4.5, 2: 4.2}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (at_least("", 0.99, 0.99), [at_least("", 0.989, 0.99), at_least("", math.nan, 0.99)]),
        (figure("", 3.0, ""), [figure("", wrong, "") for wrong in (0, -1, math.nan, math.inf)]),
        (near("", 110, 100, 0.1), [near("", 111, 100, 0.1), near("", 89, 100, 0.1)]),
        (near("", 91, 100, 0.1), [near("", math.nan, 100, 0.1), near("", 1, 0, 0.1)]),
        (
            close("", {1: 4.5, 2: 4.25}, LOSSES, 0.06),
            [
                close("", {1: 4.5, 2: 4.3}, LOSSES, 0.06),
                close("", {1: math.nan, 2: 4.2}, LOSSES, 0.06),
                close("", {1: 4.5, 2: math.nan}, LOSSES, 0.06),
                close("", {1: 4.5}, LOSSES, 0.06),
                close("", LOSSES | {3: 4.0}, LOSSES, 0.06),
                close("", {}, {}, 0.06),
            ],
        ),
        (
            same("", {"a": "1", "b": "2"}, {"b": "2", "a": "1"}),
            [
                same("", {"a": "1", "b": "3"}, {"a": "1", "b": "2"}),
                same("", {"a": "1"}, {"a": "1", "b": "2"}),
                same("", {"a": "1", "b": "2"}, {"a": "1"}),
                same("", {}, {}),
            ],
        ),
        (falls("", LOSSES, 4.2), [falls("", LOSSES, 4.1), falls("", {}, 9), falls("", LOSSES, -1)]),
        (
            says("", "a\n  rank 0 hangs", "rank 0"),
            [says("", "rank 1", "rank 0"), says("", "", "x")],
        ),
    ],
)
def test_only_what_is_right_passes(right: Row, wrong: list[Row]) -> None:
    assert right.result == "pass"
    assert {row.result for row in wrong} == {"FAIL"}


def test_rows_say_what_differs() -> None:
    assert close("", {1: 4.5, 2: 4.5}, LOSSES, 0.1).measured == "0.3 apart at 2, of 2"
    assert same("", {"a": "1", "b": "3"}, {"a": "1", "b": "2"}).measured == "1 of 2 the same; not b"
    assert near("", 120, 100, 0.1, "MiB").measured == "120 MiB (+20.0%)"
    assert at_least("", 0.368, 0.45, "%").measured == "36.8%"


@pytest.mark.parametrize("rank", ["rank 1 (node1, pid 7)", "rank 0 (node1)"])
def test_a_hang_of_another_rank_is_not_the_planted_one(rank: str) -> None:
    text = "HangError: no progress for 5 s: {} hangs in step 7 at loop.py:1 Loop.run"
    assert says("", text.format("rank 0 (node1, pid 7)"), faults.HANG).passed
    assert not says("", text.format(rank), faults.HANG).passed


def good(_: Setting) -> Iterator[Row]:
    yield figure("good", 1.0, "s")
    yield not_here("elsewhere", "a GPU")


def wrong(_: Setting) -> Iterator[Row]:
    yield close("losses", {1: 4.5}, {1: 4.0}, 0.1)


def breaking(_: Setting) -> Iterator[Row]:
    yield figure("before", 1.0, "s")
    raise SystemExit("the plain loop failed")


def nothing(_: Setting) -> Iterator[Row]:
    yield from ()


@pytest.mark.parametrize(
    ("names", "status"), [(["good"], 0), (["wrong", "good"], 1), (["breaking", "nothing"], 1)]
)
def test_what_fails_is_shown_and_ends_no_other_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    status: int,
) -> None:
    chosen = {"good": good, "wrong": wrong, "breaking": breaking, "nothing": nothing}
    monkeypatch.setattr(program, "checks", lambda: chosen)
    output = tmp_path / "table.json"
    options = argparse.Namespace(device="cpu", small=True, only=names, output=output)
    assert program.run(options, tmp_path) == status
    written = json.loads(output.read_text())
    found = [(row["check"], row["what"], row["result"]) for row in written["table"]]
    expected = {
        "good": [("good", "good", "pass"), ("good", "elsewhere", "not measured here")],
        "wrong": [("wrong", "losses", "FAIL")],
        "breaking": [
            ("breaking", "before", "pass"),
            ("breaking", "the check itself", "FAIL"),
        ],
        "nothing": [("nothing", "the check itself", "FAIL")],
    }
    assert found == [row for name in names for row in expected[name]]
    assert written["failed"] == sum(result == "FAIL" for *_, result in found)
    shown = capsys.readouterr().out
    assert all(what in shown for _, what, _ in found)
    assert ("SystemExit: the plain loop failed" in shown) == ("breaking" in names)


def test_a_token_of_gpt_2_takes_855_mflop() -> None:
    assert flop_per_token(GPT2) == pytest.approx(854.8e6, rel=1e-3)


def test_what_is_not_installed_is_named_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkout.missing() == []
    absent = {"not_there_1": "prometheus-client", "not_there_2": "fastapi", "json": "psutil"}
    monkeypatch.setattr(checkout, "NEEDED", absent)
    fastapi, prometheus = checkout.missing()
    assert fastapi.startswith("fastapi>=")
    assert prometheus.startswith("prometheus-client>=")


def test_every_name_that_may_be_missing_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {f"not_there_{name}": name for name in checkout.NEEDED.values()}
    monkeypatch.setattr(checkout, "NEEDED", needed)
    assert len(checkout.missing()) == len(needed)


def test_without_an_installation_the_recipes_are_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    entries = metadata.distribution("trainyard").entry_points.select(group="trainyard.recipes")
    monkeypatch.setattr(metadata, "distribution", not_installed)
    monkeypatch.setattr(checkout, "add_to_path", lambda *_: None)
    checkout.use_checkout(tmp_path / "installed")
    (found,) = metadata.distributions(path=[str(tmp_path / "installed")])
    assert found.name == "trainyard"
    assert set(found.entry_points.select(group="trainyard.recipes")) == set(entries)
