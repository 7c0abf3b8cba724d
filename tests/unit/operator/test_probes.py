"""Rank 0's report, over HTTP."""

import math
from typing import Any

import pytest
from aiohttp import web

from tests.support.lifecycle.builders import make_report
from trainyard_operator import probes
from trainyard_operator.app import serve


async def fetch_from(report: web.Response) -> tuple[Any, str]:
    async def progress(_: web.Request) -> web.Response:
        return report

    app = web.Application()
    app.router.add_get("/progress", progress)
    async with serve(app, "127.0.0.1", 0) as port, probes.session() as http:
        return await probes.fetch_report(http, "127.0.0.1", port)


async def test_report() -> None:
    report = make_report(step=5, loss=1.5)
    assert await fetch_from(web.json_response(report.to_wire())) == (report, "")


async def test_unknown_keys_of_a_newer_trainer_are_dropped() -> None:
    report = make_report(step=5)
    newer = {**report.to_wire(), "novelty": 1}
    assert await fetch_from(web.json_response(newer)) == (report, "")


async def test_a_phase_of_a_newer_trainer_is_taken_as_it_is() -> None:
    newer = {**make_report(step=5).to_wire(), "phase": "distilling"}
    report, _ = await fetch_from(web.json_response(newer))
    assert (report.step, report.phase) == (5, "distilling")


async def test_a_metric_that_is_not_finite_is_left_out() -> None:
    report = make_report(step=5, evaluation={"eval_loss": math.nan, "accuracy": 0.5})
    found, _ = await fetch_from(web.Response(body=report.model_dump_json(by_alias=True)))
    assert (found.step, found.evaluation) == (5, {"accuracy": 0.5})


@pytest.mark.parametrize(
    "body",
    [
        web.Response(text="not json"),
        web.json_response([1]),
        web.json_response({"run": "r"}),
        web.Response(status=503, text="starting"),
        web.Response(body=b" " * (probes.MAX_REPORT_BYTES + 10)),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_an_invalid_report_is_ignored(body: web.Response) -> None:
    report, problem = await fetch_from(body)
    assert report is None
    assert problem


async def test_an_agent_to_which_nothing_has_been_reported_is_healthy() -> None:
    assert await fetch_from(web.Response(status=404)) == (None, "")


async def test_a_rank_0_that_does_not_answer_its_agent_is_named() -> None:
    report, problem = await fetch_from(web.Response(status=504))
    assert report is None
    assert problem.startswith("rank 0 does not answer the agent at 127.0.0.1:")


async def test_an_unreachable_pod_has_no_report() -> None:
    async with probes.session() as http:
        report, problem = await probes.fetch_report(http, "127.0.0.1", 1)
        assert report is None
        assert "allow ingress to the run's pods on port 1" in problem
