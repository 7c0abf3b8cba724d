"""The dashboard's server: what the page asks for, as JSON. Nothing can be changed through it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from trainyard_dashboard.assets import add_pages
from trainyard_dashboard.board import Board
from trainyard_dashboard.calculator import (
    MAX_PROCESSES,
    Projection,
    Scaling,
    scalings,
)
from trainyard_dashboard.cluster_source import ClusterSource
from trainyard_dashboard.costs import Costs, costs
from trainyard_dashboard.demo import About, Answer, Demo, Question
from trainyard_dashboard.local_source import LocalSource
from trainyard_dashboard.model import RunHistory, RunRow, Source
from trainyard_dashboard.prices import DEFAULT, PriceFileError, Prices
from trainyard_dashboard.prometheus_source import PrometheusSource
from trainyard_dashboard.settings import DashboardSettings
from trainyard_serving.app import create_app
from trainyard_serving.backend import Served
from trainyard_serving.errors import ApiError
from trainyard_serving.metrics import Metrics

LOCAL_NAMES = ["localhost", "127.0.0.1", "["]  # the last is what Starlette makes of [::1]:PORT
MAX_SELECTED = 50  # runs drawn at once
RATES = {"tokens_per_second": "tokens", "samples_per_second": "samples"}

RunIds = Annotated[list[str], Query(min_length=1, max_length=MAX_SELECTED)]
MetricNames = Annotated[list[str], Query(min_length=1, max_length=16)]
Processes = Annotated[int, Query(ge=1, le=MAX_PROCESSES)]
Budget = Annotated[float, Query(gt=0, le=1e18, description="Tokens or samples to train on.")]
Configuration = Annotated[int, Query(ge=0, le=1000)]
PricePerHour = Annotated[
    float | None, Query(ge=0, le=1e9, description="Of one process for an hour.")
]


class State(BaseModel):
    """What the page must know first."""

    sources: list[str] = Field(description="Where runs are read from, for people.")
    poll_seconds: float
    has_demo: bool


class Runs(BaseModel):
    """All runs, the newest first."""

    runs: list[RunRow]
    problems: list[str]


class Histories(BaseModel):
    """Curves and samples by the run's id."""

    runs: dict[str, RunHistory]
    problems: list[str]


class StudyConfiguration(BaseModel):
    """One configuration that a study measured at several sizes."""

    label: str
    unit: str
    sizes: list[int]


class StudyRow(BaseModel):
    """A study in short."""

    id: str
    name: str
    phase: str | None
    progress: str
    headline: str
    message: str
    machine: str
    configurations: list[StudyConfiguration]
    price: float | None = Field(description="Of a process for an hour, as entered in the study.")
    currency: str


class Studies(BaseModel):
    """All studies."""

    studies: list[StudyRow]
    problems: list[str]


class _NoModel:
    """A backend without a model: always there."""

    alive = ready = True
    served: Served | None = None
    reason = ""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {"model_loaded": False}
        self.refused: list[str] = []

    def start(self) -> None:
        """Sources are read when somebody asks."""

    def stop(self) -> None:
        """Nothing goes on."""


class Routes:
    """The routes of this app. Those that read files or ask servers run in threads."""

    def __init__(
        self, settings: DashboardSettings, board: Board, prices: Prices, demo: Demo
    ) -> None:
        self._settings = settings
        self._board = board
        self._prices = prices
        self._demo = demo

    async def state(self) -> State:
        """What the page must know first."""
        return State(
            sources=self._board.where,
            poll_seconds=self._settings.poll_seconds,
            has_demo=self._settings.demo_url is not None,
        )

    def runs(self) -> Runs:
        """All runs, the newest first."""
        runs, problems = self._board.runs()
        return Runs(runs=runs, problems=problems)

    def history(self, run: RunIds, metric: MetricNames) -> Histories:
        """Curves of some runs, thinned out to 500 points each, and samples of text."""
        runs, problems = self._board.history(run, metric)
        return Histories(runs=runs, problems=problems)

    def studies(self) -> Studies:
        """Scaling studies with their configurations."""
        studies, problems = self._board.studies()
        rows = []
        for name, study in studies.items():
            status, cost, machine = study.status, study.spec.cost, study.status.machine
            rows.append(
                StudyRow(
                    id=name,
                    name=name.rpartition("/")[2],
                    phase=status.phase,
                    progress=status.progress,
                    headline=status.headline,
                    message=status.message,
                    machine=f"{machine.cpu}, {machine.cores} cores" if machine else "",
                    configurations=[
                        StudyConfiguration(
                            label=label, unit=scaling.unit, sizes=list(scaling.measured)
                        )
                        for label, scaling in scalings(study)
                    ],
                    price=cost.per_process_hour if cost else None,
                    currency=cost.currency if cost else "USD",
                )
            )
        return Studies(studies=rows, problems=problems)

    def projection(
        self,
        study: str,
        processes: Processes,
        budget: Budget,
        configuration: Configuration = 0,
        price: PricePerHour = None,
    ) -> Projection:
        """Time and cost of a training at so many processes, from what the study measured."""
        return self._scaling(study, configuration).project(processes, budget, price)

    def costs(
        self,
        processes: Processes,
        budget: Budget,
        study: str | None = None,
        configuration: Configuration = 0,
        run: str | None = None,
    ) -> Costs:
        """What a training costs on every hardware of the price file, by a study or a run."""
        if (study is None) == (run is None):
            raise ApiError(422, "name a study or a run, and not both", "no_basis")
        try:
            file = self._prices.read()
        except PriceFileError as error:
            raise ApiError(409, str(error), "bad_price_file") from None
        scaling = self._scaling(study, configuration) if study else self._scaling_of_run(run or "")
        return costs(scaling, processes, budget, file, str(self._prices.path))

    def _scaling(self, study: str, configuration: int) -> Scaling:
        studies, _ = self._board.studies()
        if study not in studies:
            raise ApiError(404, f"there is no study {study}", "no_study")
        found = scalings(studies[study])
        if configuration >= len(found):
            raise ApiError(404, f"study {study} has no such configuration", "no_configuration")
        return found[configuration][1]

    def _scaling_of_run(self, run: str) -> Scaling:
        """A run has one size: what it measured there, no law."""
        rows, _ = self._board.runs()
        row = next((row for row in rows if row.id == run), None)
        if row is None:
            raise ApiError(404, f"there is no run {run}", "no_run")
        histories, problems = self._board.history([run], list(RATES))
        curves = histories[run].curves if run in histories else []
        for metric, unit in RATES.items():
            for curve in curves:
                if curve.metric == metric and row.processes and curve.rate:
                    return Scaling({row.processes: [curve.rate]}, unit)
        why = problems[0] if problems else "its throughput is not known"
        raise ApiError(409, f"run {row.name} tells nothing of time: {why}", "no_throughput")

    async def about_demo(self) -> About:
        """Whom the live demo asks."""
        return await self._demo.about()

    async def ask(self, question: Question) -> Answer:
        """Ask the served model."""
        return await self._demo.ask(question)


def create_dashboard_app(settings: DashboardSettings) -> FastAPI:
    """The server's ASGI app."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every query
    prometheus = None
    if settings.prometheus_url:
        prometheus = PrometheusSource(settings.prometheus_url, settings.prometheus_token)
    board = Board(_sources(settings), prometheus)
    demo = Demo(settings.demo_url, settings.demo_api_key, settings.max_queue)
    prices = Prices(Path(settings.prices).absolute() if settings.prices else DEFAULT)
    metrics = Metrics()
    metrics.queue_depth.set_function(lambda: demo.gate.depth)
    app = create_app("Trainyard: dashboard", settings, _NoModel(), metrics, invalid=_invalid)
    routes = Routes(settings, board, prices, demo)
    app.add_api_route("/api/state", routes.state)
    app.add_api_route("/api/runs", routes.runs)
    app.add_api_route("/api/history", routes.history)
    app.add_api_route("/api/studies", routes.studies)
    app.add_api_route("/api/projection", routes.projection)
    app.add_api_route("/api/costs", routes.costs)
    app.add_api_route("/api/demo", routes.about_demo)
    app.add_api_route("/api/demo", routes.ask, methods=["POST"])
    add_pages(app)
    if settings.local_only and settings.api_key is None:
        # Else any page in the user's browser could read ours by a name that leads here.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES)
    return app


def _invalid(error: RequestValidationError) -> ApiError:
    """One line; what was sent is not repeated, for it may be no text."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    what = f"{where}: {first['msg']}" if where else str(first["msg"])
    return ApiError(422, what, "invalid_request")


def _sources(settings: DashboardSettings) -> Sequence[Source]:
    sources: list[Source] = []
    if settings.local_home:
        sources.append(LocalSource(settings.local_home))
    if settings.cluster:
        sources.append(ClusterSource(settings.context, settings.namespace))
    return sources
