"""Rank 0's report, over HTTP."""

from typing import Any

import pytest
from aiohttp import web

from tests.support.lifecycle.builders import make_report
from trainyard_operator import probes
from trainyard_operator.app import serve


async def fetch_from(report: web.Response) -> Any:
    async def progress(_: web.Request) -> web.Response:
        return report

    app = web.Application()
    app.router.add_get("/progress", progress)
    async with serve(app, "127.0.0.1", 0) as port, probes.session() as http:
        return await probes.fetch_report(http, "127.0.0.1", port)


async def test_report() -> None:
    report = make_report(step=5, loss=1.5)
    assert await fetch_from(web.json_response(report.to_wire())) == report


async def test_unknown_keys_of_a_newer_trainer_are_dropped() -> None:
    report = make_report(step=5)
    assert await fetch_from(web.json_response({**report.to_wire(), "novelty": 1})) == report


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
    assert await fetch_from(body) is None


async def test_an_unreachable_pod_has_no_report() -> None:
    async with probes.session() as http:
        assert await probes.fetch_report(http, "127.0.0.1", 1) is None
