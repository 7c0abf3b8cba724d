"""The dashboard's HTTP server: a read-only JSON API, and the page's static files."""

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from trainyard_api.study import ScalingStudy
from trainyard_dashboard.catalog import Catalog, DataSource
from trainyard_dashboard.costs import (
    EXAMPLE_PRICES,
    Costs,
    PriceFile,
    PriceFileError,
    compare_costs,
)
from trainyard_dashboard.demo import Answer, Demo, DemoInfo, Prompt
from trainyard_dashboard.history import Known, RunHistory
from trainyard_dashboard.kubernetes_api import KubernetesAPI
from trainyard_dashboard.local_files import LocalFiles
from trainyard_dashboard.projection import (
    MAX_PROCESSES,
    Projection,
    ScalingModel,
    scaling_models,
)
from trainyard_dashboard.prometheus import Prometheus
from trainyard_dashboard.responses import json_response
from trainyard_dashboard.run_pages import RunPages
from trainyard_dashboard.settings import DashboardSettings
from trainyard_dashboard.usage import RunUsage
from trainyard_serving.app import create_app
from trainyard_serving.errors import ApiError
from trainyard_serving.metrics import Metrics
from trainyard_serving.model_store.verified import ServedModel

LOOPBACK_HOSTS = ["localhost", "127.0.0.1", "["]  # Starlette reduces [::1]:PORT to "["
MAX_SELECTED = 50  # runs in one request
MAX_METRICS = 64  # in one request
RATE_UNITS = {"tokens_per_second": "tokens", "samples_per_second": "samples"}

STATIC = Path(__file__).with_name("static")
MEDIA_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".html": "text/html",
    ".yaml": "text/plain",
}
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'self';"
    " style-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

RunIds = Annotated[list[str], Query(min_length=1, max_length=MAX_SELECTED)]
MetricNames = Annotated[list[str], Query(min_length=1, max_length=MAX_METRICS)]
KnownHistories = Annotated[
    list[Annotated[str, Field(pattern=r"^([0-9a-f]+@[0-9.e+-]+)?$", max_length=60)]] | None,
    Query(
        max_length=MAX_SELECTED,
        description="What the caller has, in the order of `run`: VERSION@STEP, or empty.",
    ),
]
Processes = Annotated[int, Query(ge=1, le=MAX_PROCESSES)]
Budget = Annotated[float, Query(gt=0, le=1e18, description="Tokens or samples to train on.")]
Configuration = Annotated[int, Query(ge=0, le=1000)]
PricePerHour = Annotated[
    float | None, Query(ge=0, le=1e9, description="Price of one process for an hour.")
]


class State(BaseModel):
    """What the page needs once, when it is opened."""

    sources: list[str] = Field(description="Names of the data sources.")
    poll_seconds: float
    has_demo: bool


class Histories(BaseModel):
    """Curves and text samples by run id."""

    runs: dict[str, RunHistory]
    problems: list[str]


class Usages(BaseModel):
    """What ranks and pods use now, by run id; without the runs of which nothing is known."""

    runs: dict[str, RunUsage]
    problems: list[str]


class StudyConfiguration(BaseModel):
    """One configuration of a study, and the sizes at which it was measured."""

    label: str
    unit: str
    sizes: list[int]


class StudySummary(BaseModel):
    """A study by its status."""

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

    @classmethod
    def of(cls, study_id: str, study: ScalingStudy) -> "StudySummary":
        """Summarize a study."""
        status, cost, machine = study.status, study.spec.cost, study.status.machine
        return cls(
            id=study_id,
            name=study_id.rpartition("/")[2],
            phase=status.phase,
            progress=status.progress,
            headline=status.headline,
            message=status.message,
            machine=f"{machine.cpu}, {machine.cores} cores" if machine else "",
            configurations=[
                StudyConfiguration(label=label, unit=model.unit, sizes=list(model.measured))
                for label, model in scaling_models(study)
            ],
            price=cost.per_process_hour if cost else None,
            currency=cost.currency if cost else "USD",
        )


class Studies(BaseModel):
    """All studies."""

    studies: list[StudySummary]
    problems: list[str]


class _NoModel:
    """The dashboard's backend for `create_app`: it has no model, and is always ready."""

    alive = ready = True
    served: ServedModel | None = None
    reason = ""

    def __init__(self) -> None:
        self.details: dict[str, Any] = {"model_loaded": False}
        self.refused: list[str] = []

    def start(self) -> None:
        """Do nothing: data sources are read on request."""

    def stop(self) -> None:
        """Do nothing."""


class DashboardAPI:
    """The endpoints. Those that block on files or servers are not async: they run in threads."""

    def __init__(
        self, settings: DashboardSettings, catalog: Catalog, prices: PriceFile, demo: Demo
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._prices = prices
        self._demo = demo

    async def state(self) -> State:
        """What the page needs once, when it is opened."""
        return State(
            sources=self._catalog.labels,
            poll_seconds=self._settings.poll_seconds,
            has_demo=self._settings.demo_url is not None,
        )

    def history(
        self, request: Request, run: RunIds, metric: MetricNames, known: KnownHistories = None
    ) -> Response:
        """Curves of runs, downsampled to at most 500 points each, and text samples.

        With `known`, only what is new. The curves `axis:seconds`, `axis:samples` and `axis:tokens`
        say where each step lies on those axes.
        """
        try:
            held = {name: Known.parse(text) for name, text in zip(run, known or [], strict=False)}
        except ValueError:
            raise ApiError(422, "known: it must be VERSION@STEP", "invalid_request") from None
        runs, problems = self._catalog.history(
            run, metric, {name: one for name, one in held.items() if one}
        )
        return json_response(request, Histories(runs=runs, problems=problems))

    def usage(self, run: RunIds) -> Usages:
        """CPU, memory and GPU of ranks, and network traffic of pods, at most a minute old."""
        runs, problems = self._catalog.usage(run)
        return Usages(runs=runs, problems=problems)

    def studies(self) -> Studies:
        """Scaling studies with their configurations."""
        studies, problems = self._catalog.studies()
        summaries = [StudySummary.of(study_id, study) for study_id, study in studies.items()]
        return Studies(studies=summaries, problems=problems)

    def projection(
        self,
        study: str,
        processes: Processes,
        budget: Budget,
        configuration: Configuration = 0,
        price: PricePerHour = None,
    ) -> Projection:
        """Time and cost of a training run with this many processes, projected from a study."""
        return self._model_of_study(study, configuration).project(processes, budget, price)

    def costs(
        self,
        processes: Processes,
        budget: Budget,
        study: str | None = None,
        configuration: Configuration = 0,
        run: str | None = None,
    ) -> Costs:
        """The cost on each hardware of the price file, from a study's or a run's throughput."""
        if (study is None) == (run is None):
            raise ApiError(422, "give exactly one of study and run", "no_basis")
        try:
            prices = self._prices.read()
        except PriceFileError as error:
            raise ApiError(409, str(error), "bad_price_file") from None
        if study:
            model = self._model_of_study(study, configuration)
        else:
            model = self._model_of_run(run or "")
        return compare_costs(model, processes, budget, prices, self._prices.path)

    def _model_of_study(self, study_id: str, configuration: int) -> ScalingModel:
        studies, _ = self._catalog.studies()
        if study_id not in studies:
            raise ApiError(404, f"study {study_id} does not exist", "no_study")
        models = scaling_models(studies[study_id])
        if configuration >= len(models):
            message = f"study {study_id} has no configuration {configuration}"
            raise ApiError(404, message, "no_configuration")
        return models[configuration][1]

    def _model_of_run(self, run_id: str) -> ScalingModel:
        """A model with the run's own size only, hence without a law."""
        runs, _ = self._catalog.runs()
        run = next((run for run in runs if run.id == run_id), None)
        if run is None:
            raise ApiError(404, f"run {run_id} does not exist", "no_run")
        histories, problems = self._catalog.history([run_id], list(RATE_UNITS))
        history = histories.get(run_id, RunHistory())
        for metric, unit in RATE_UNITS.items():
            for curve in history.curves:
                if curve.metric == metric and run.processes and curve.rate:
                    device = history.device or run.device
                    return ScalingModel({run.processes: [curve.rate]}, unit, device)
        cause = f": {problems[0]}" if problems else ""
        message = f"the throughput of run {run.name} is unknown{cause}"
        raise ApiError(409, message, "no_throughput")

    async def demo(self) -> DemoInfo:
        """The server that the demo sends prompts to."""
        return await self._demo.info()

    async def ask(self, prompt: Prompt) -> Answer:
        """Send a prompt to the served model."""
        return await self._demo.ask(prompt)


def create_dashboard_app(settings: DashboardSettings) -> FastAPI:
    """The dashboard's ASGI app."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every query
    prometheus = None
    if settings.prometheus_url:
        prometheus = Prometheus(settings.prometheus_url, settings.prometheus_token)
    catalog = Catalog(_data_sources(settings), prometheus)
    demo = Demo(settings.demo_url, settings.demo_api_key, settings.max_queue)
    prices = PriceFile(Path(settings.prices).absolute() if settings.prices else EXAMPLE_PRICES)
    metrics = Metrics()
    metrics.queue_depth.set_function(lambda: demo.gate.depth)
    # Prevents DNS rebinding: a web page elsewhere could otherwise read the runs through a host name
    # that resolves to this machine.
    open_here = settings.local_only and settings.api_key is None
    app = create_app(
        "Trainyard: dashboard",
        settings,
        _NoModel(),
        metrics,
        invalid=_invalid,
        allowed_hosts=LOOPBACK_HOSTS if open_here else (),
    )
    api = DashboardAPI(settings, catalog, prices, demo)
    app.add_api_route("/api/state", api.state)
    RunPages(catalog).add_routes(app)
    app.add_api_route("/api/history", api.history, response_model=Histories)
    app.add_api_route("/api/usage", api.usage)
    app.add_api_route("/api/studies", api.studies)
    app.add_api_route("/api/projection", api.projection)
    app.add_api_route("/api/costs", api.costs)
    app.add_api_route("/api/demo", api.demo)
    app.add_api_route("/api/demo", api.ask, methods=["POST"])
    app.add_api_route("/", index, include_in_schema=False)
    app.add_api_route("/static/{name:path}", static_file, include_in_schema=False)
    return app


def index(request: Request) -> Response:
    """The page."""
    return static_file(request, "index.html")


def static_file(request: Request, name: str) -> Response:
    """One of the page's files; 304 if the client has it already."""
    if name not in _static_names():
        raise ApiError(404, f"there is no file {name}")
    etag = f'"{hashlib.sha256(_static_data(name)).hexdigest()[:16]}"'
    headers = {**SECURITY_HEADERS, "cache-control": "no-cache", "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES[Path(name).suffix]
    return Response(_static_data(name), headers=headers, media_type=media_type)


@cache
def _static_names() -> frozenset[str]:
    """Paths below `static`, of the types that the page consists of."""
    return frozenset(
        path.relative_to(STATIC).as_posix()
        for path in STATIC.rglob("*")
        if path.suffix in MEDIA_TYPES and path.is_file()
    )


@cache
def _static_data(name: str) -> bytes:
    return (STATIC / name).read_bytes()


def _invalid(error: RequestValidationError) -> ApiError:
    """One line. The input is not repeated in it: it may be anything, even binary."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    message = f"{field}: {first['msg']}" if field else str(first["msg"])
    return ApiError(422, message, "invalid_request")


def _data_sources(settings: DashboardSettings) -> Sequence[DataSource]:
    sources: list[DataSource] = []
    if settings.local_home:
        sources.append(LocalFiles(settings.local_home))
    if settings.cluster:
        sources.append(KubernetesAPI(settings.context, settings.namespace))
    return sources
