"""What ranks and pods use: from agents on this machine, from a Prometheus, folded if many."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.canned_http import answering
from tests.support.dashboard.home import driven, write_run
from trainyard_agent.gpus import Gpu
from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer
from trainyard_agent.usage import RankUsage as OfAgent
from trainyard_dashboard.agents import Agents
from trainyard_dashboard.catalog import Catalog, DataSourceError, RunSummary
from trainyard_dashboard.local_files import LocalFiles
from trainyard_dashboard.prometheus import Prometheus
from trainyard_dashboard.usage import MAX_PODS, MAX_RANKS, PodTraffic, RankUsage, fold

RUN = RunSummary(id="cluster/ml/a", name="a", namespace="ml", source="cluster", phase="Running")
GIB = 1 << 30


def test_a_small_run_is_shown_in_full() -> None:
    ranks = [RankUsage(rank=rank) for rank in reversed(range(MAX_RANKS))]
    usage = fold(ranks, [PodTraffic(pod="b"), PodTraffic(pod="a", sent=3.0)])
    assert usage is not None
    assert [rank.rank for rank in usage.ranks] == list(range(MAX_RANKS))
    assert [pod.pod for pod in usage.pods] == ["a", "b"]
    assert fold([]) is None


def test_of_512_ranks_the_extreme_ones_are_shown() -> None:
    ranks = [RankUsage(rank=rank, cpu_cores=1.0, memory_bytes=GIB + rank) for rank in range(512)]
    ranks[77].cpu_cores, ranks[99].cpu_cores = 0.0, 9.0
    ranks[300].memory_bytes = 40 * GIB
    ranks[41].gpu_utilization = 0.02
    pods = [PodTraffic(pod=f"a-1-{pod}", received=float(pod), sent=0.0) for pod in range(64)]
    usage = fold(ranks, pods)
    assert usage is not None
    assert (usage.rank_count, usage.pod_count) == (512, 64)
    assert len(usage.ranks) <= MAX_RANKS
    assert len(usage.pods) <= MAX_PODS
    why = {rank.rank: rank.why for rank in usage.ranks}
    assert why[77] == ["least CPU"]
    assert why[99] == ["most CPU"]
    assert why[300] == ["most memory"]
    assert why[41] == ["least GPU"]
    assert {"a-1-0", "a-1-63"} <= {pod.pod for pod in usage.pods}
    assert not any(rank.why for rank in ranks)


def serve(run: str, usages: list[OfAgent]) -> ReportServer:
    server = ReportServer(Report(run, 1), int, usages=lambda: list(usages))
    server.serve("127.0.0.1", 0)
    return server


def test_the_agents_of_a_run_on_this_machine_are_asked() -> None:
    now, usages = 100.0, [OfAgent(0, 5.0, GIB), OfAgent(1, 5.0, 2 * GIB, Gpu(0.9, 0.4, 3 * GIB))]
    agents = Agents(clock=lambda: now)
    server = serve("a", usages)
    other = serve("b", [OfAgent(2, 5.0, GIB)])  # another run has the port by now
    addresses = [("127.0.0.1", server.port), ("127.0.0.1", other.port), ("127.0.0.1", 9)]
    try:
        first = agents.usage("a", 1, addresses)
        assert [rank.cpu_cores for rank in first] == [None, None]
        now, usages[0] = 110.0, OfAgent(0, 20.0, GIB)
        zero, one = agents.usage("a", 1, addresses)
    finally:
        server.close()
        other.close()
    assert (zero.rank, zero.cpu_cores, zero.memory_bytes) == (0, 1.5, GIB)
    assert zero.gpu_utilization is None
    assert (one.rank, one.cpu_cores, one.gpu_utilization) == (1, 0.0, 0.9)
    assert (one.memory_bytes, one.gpu_memory_bytes) == (2 * GIB, 3 * GIB)


def test_a_local_run_needs_no_prometheus(tmp_path: Path) -> None:
    server = serve("a", [OfAgent(0, 1.0, GIB)])
    write_run(tmp_path, "a", phase="Running", attempt=1, nodes=1)
    write_run(tmp_path, "ended", attempt=1, nodes=1)
    attempts = tmp_path / "runs" / "a" / "attempts"
    attempts.mkdir()
    (attempts / "1.json").write_text(f'{{"report": {server.port}, "rendezvous": 1}}')
    try:
        with driven(tmp_path, "a"):
            catalog = Catalog([LocalFiles(tmp_path)], None)
            found, problems = catalog.usage(["local/default/a", "local/default/ended", "gone"])
    finally:
        server.close()
    assert problems == []
    assert set(found) == {"local/default/a"}
    assert found["local/default/a"].ranks[0].memory_bytes == GIB


def test_an_unreadable_address_is_a_one_line_error(tmp_path: Path) -> None:
    write_run(tmp_path, "a", phase="Running", attempt=1, nodes=1)
    with driven(tmp_path, "a"):
        catalog = Catalog([LocalFiles(tmp_path)], None)
        assert catalog.usage(["local/default/a"]) == ({}, [])  # no attempt has started
        attempts = tmp_path / "runs" / "a" / "attempts"
        attempts.mkdir()
        (attempts / "1.json").write_text("{}")
        found, (line,) = catalog.usage(["local/default/a"])
    assert found == {}
    assert line == "the ranks of a can't be read: 'report' is missing"


def test_a_prometheus_has_the_ranks_and_pods_of_a_cluster() -> None:
    asked: list[str] = []

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        text = query["query"]
        asked.append(text)

        def vector(*series: tuple[dict[str, str], str]) -> tuple[int, Any]:
            result = [{"metric": labels, "value": [1, value]} for labels, value in series]
            return 200, {"status": "success", "data": {"result": result}}

        memory, gpu = ({"__name__": f"trainyard_agent_rank_{name}"} for name in NAMES)
        if "__name__" in text:
            return vector(
                (memory | {"rank": "1"}, "5"), (memory | {"rank": "0"}, "7"),
                (gpu | {"rank": "1"}, "0.5"), (gpu | {"rank": "0"}, "NaN"),
            )  # fmt: skip
        if "cpu_seconds" in text:
            return vector(({"rank": "1"}, "1.5"))
        if "receive" in text:
            return vector(({"pod": "a-1-0"}, "10"), ({"instance": "1.2.3.4:9400"}, "20"))
        return vector(({"pod": "a-1-0"}, "30"))

    with answering(answer) as url:
        usage = Prometheus(url).usage(RUN)
    assert usage is not None
    zero, one = usage.ranks
    assert (zero.cpu_cores, zero.memory_bytes, zero.gpu_utilization) == (None, 7, None)
    assert (one.cpu_cores, one.memory_bytes, one.gpu_utilization) == (1.5, 5, 0.5)
    assert [(pod.pod, pod.received, pod.sent) for pod in usage.pods] == [
        ("1.2.3.4:9400", 20, None),
        ("a-1-0", 10, 30),
    ]
    assert all('run="a",namespace="ml"' in query for query in asked)


NAMES = ("memory_bytes", "gpu_utilization_ratio")


@pytest.mark.parametrize("labels", [{}, {"rank": "x", "__name__": "trainyard_agent_rank_cpu"}])
def test_an_answer_of_another_form_is_a_one_line_error(labels: dict[str, str]) -> None:
    body = {"status": "success", "data": {"result": [{"metric": labels, "value": [1, "2"]}]}}
    refused = pytest.raises(DataSourceError, match="does not respond like a Prometheus server")
    with answering(lambda path, query: (200, body)) as url, refused:
        Prometheus(url).usage(RUN)
