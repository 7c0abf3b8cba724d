"""What all ranks use, for a status: few figures, over all nodes, that seldom change."""

import threading
from typing import Any

import pytest

from tests.patience import until
from trainyard_agent.gpus import Gpu
from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer
from trainyard_agent.summary import Summary, SummaryThread
from trainyard_agent.usage import RankUsage, from_wire
from trainyard_api.base import parse_known
from trainyard_api.progress import ProgressReport

GIB = 1 << 30


def test_the_extremes_are_named_with_their_ranks() -> None:
    summary = Summary()
    gpu = Gpu(0.9, 0.4, 30 * GIB)
    first = [RankUsage(0, 5.0, GIB), RankUsage(1, 7.0, 2 * GIB, gpu)]
    assert "cpuCores" not in summary.update(first, 100.0)  # unknown before the second look
    usage = summary.update([RankUsage(0, 15.0, GIB), RankUsage(1, 9.0, 2 * GIB, gpu)], 110.0)
    assert usage == {
        "ranks": 2,
        "cpuCores": {"lowest": 0.2, "lowestRank": 1, "highest": 1.0, "highestRank": 0},
        "memoryBytes": {
            "lowest": GIB,
            "lowestRank": 0,
            "highest": 2 * GIB,
            "highestRank": 1,
        },
        "gpuUtilization": {"lowest": 0.9, "lowestRank": 1, "highest": 0.9, "highestRank": 1},
        "gpuMemoryBytes": {
            "lowest": 30 * GIB,
            "lowestRank": 1,
            "highest": 30 * GIB,
            "highestRank": 1,
        },
    }


def test_figures_that_have_changed_little_stay_as_they_are() -> None:
    """Each change of a status is a request to the API server, and one to all who watch it."""
    summary = Summary()
    seconds = 0.0
    shown = []
    for minute, cores in enumerate((0.0, 1.0, 1.1, 0.9, 1.15, 2.0, 1.9)):
        seconds += 60 * cores
        ranks = [RankUsage(rank, seconds, GIB + (minute << 20)) for rank in (0, 1)]
        shown.append(summary.update(ranks, 60.0 * minute))
    assert shown[1] == shown[2] == shown[3] == shown[4]
    assert shown[5]["cpuCores"]["highest"] == pytest.approx(2.0)
    assert shown[5]["memoryBytes"] == shown[1]["memoryBytes"]
    assert shown[6] == shown[5]


def test_the_lowest_and_the_highest_are_of_one_moment() -> None:
    """While ranks load, the lowest of before could else be above the highest of now."""
    summary = Summary()
    summary.update([RankUsage(0, 0.0, 560 << 20), RankUsage(1, 0.0, 700 << 20)], 0.0)
    usage = summary.update([RankUsage(0, 0.0, 480 << 20), RankUsage(1, 0.0, 484 << 20)], 60.0)
    assert usage["memoryBytes"] == {
        "lowest": 480 << 20,
        "lowestRank": 0,
        "highest": 484 << 20,
        "highestRank": 1,
    }


def test_peak_memory_grows_in_steps() -> None:
    report = Report("mine", 1)
    shown = set()
    for used in range(1000 << 20, 2000 << 20, 1 << 20):
        report.saw_memory(used)
        assert report.peak_memory <= used < 1.06 * report.peak_memory
        shown.add(report.peak_memory)
    assert len(shown) < 20


def test_a_script_that_reports_nothing_has_its_usage_in_a_report() -> None:
    report = Report("mine", 1)
    assert report.document() is None
    report.saw_usage(Summary().update([RankUsage(0, 1.0, GIB, peak=GIB)], 0.0), GIB)
    found = parse_known(ProgressReport, report.document())
    assert found is not None
    assert (found.step, found.progress_percent, found.peak_memory_bytes) == (None, None, GIB)
    assert found.usage is not None
    assert found.usage.memory_bytes is not None
    assert (found.usage.ranks, found.usage.memory_bytes.highest_rank) == (1, 0)


def test_the_ranks_of_all_nodes_count() -> None:
    other = ReportServer(
        Report("mine", 1), int, usages=lambda: [RankUsage(7, 1.0, 3 * GIB, peak=4 * GIB)]
    )
    other.serve("127.0.0.1", 0)
    report, closing = Report("mine", 1), threading.Event()
    peers = (f"127.0.0.1:{other.port}", "127.0.0.1:9")  # at the second nobody answers
    try:
        own = [RankUsage(0, 1.0, GIB, peak=GIB)]
        SummaryThread(lambda: list(own), peers, report.saw_usage, 0.01, closing)
        until(lambda: report.document() is not None, "a summary")
    finally:
        closing.set()
        other.close()
    document = report.document() or {}
    assert document["usage"]["ranks"] == 2
    assert document["usage"]["memoryBytes"]["highestRank"] == 7
    assert document["peakMemoryBytes"] == 4 * GIB


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"usages": 1},
        {"usages": [{}]},
        {"usages": [{"rank": 0, "cpu_seconds": "nan", "memory": 1, "peak": 1, "gpu": None}]},
        {"usages": [{"rank": 0, "cpu_seconds": 1, "memory": 1, "peak": 1, "gpu": 3}]},
    ],
)
def test_an_answer_without_usages_has_none(document: Any) -> None:
    assert from_wire(document) == []


def test_usages_are_read_as_they_were_sent() -> None:
    usages = [RankUsage(2, 1.5, 100, Gpu(0.9, 0.4, 30), 200), RankUsage(3, 2.5, 200)]
    assert from_wire({"usages": [usage.to_wire() for usage in usages]}) == usages
