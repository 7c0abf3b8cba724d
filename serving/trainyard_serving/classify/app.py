"""The text classification server: classes of one or of several texts."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from trainyard_serving.app import create_app, not_ready
from trainyard_serving.batcher import Batcher, BatchFailedError
from trainyard_serving.classify.classifier import Floats
from trainyard_serving.connections import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.errors import ApiError
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import DIGEST_HEADER
from trainyard_serving.model_store.follower import Follower
from trainyard_serving.model_store.locations import location_of
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_serving.pages import add_docs, page
from trainyard_serving.settings import ClassifySettings

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.classify.classifier import Classifier

COMPUTED_PATHS = frozenset({"/predict", "/predict/batch"})
PAGE = Path(__file__).with_name("page.html")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is empty."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is not declared as JSON."},
    429: {"description": "Too many texts are waiting; see Retry-After."},
    503: {"description": "The model is not loaded; see Retry-After."},
}

MAX_CHARACTERS = 10_000
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class PredictRequest(BaseModel):
    """Body of POST /predict."""

    model_config = ConfigDict(strict=True)

    text: Text


class BatchRequest(BaseModel):
    """Body of POST /predict/batch."""

    model_config = ConfigDict(strict=True)

    texts: list[Text] = Field(min_length=1)


class Prediction(BaseModel):
    """The class of one text."""

    label: str
    confidence: float = Field(description="Probability of the label.")
    probs: dict[str, float] = Field(description="Probability of each class.")

    @classmethod
    def of(cls, labels: list[str], probabilities: Floats) -> "Prediction":
        """`probabilities` of shape (classes,)."""
        probs = dict(zip(labels, probabilities.tolist(), strict=True))
        label = max(probs, key=probs.__getitem__)
        return cls(label=label, confidence=probs[label], probs=probs)


class Routes:
    """The app's own routes."""

    def __init__(
        self,
        settings: ClassifySettings,
        follower: "Follower[Classifier]",
        batcher: "Batcher[Classifier, str]",
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._batcher = batcher
        self._metrics = metrics

    async def page(self) -> HTMLResponse:
        """A page to try the model."""
        return page(PAGE)

    async def predict(self, request: Request, body: PredictRequest) -> Response:
        """The class of a text."""
        return await self._answer(request, [body.text], one=True)

    async def predict_batch(self, request: Request, body: BatchRequest) -> Response:
        """The classes of several texts, in their order."""
        if len(body.texts) > self._settings.max_texts:
            got = f"(got {len(body.texts)})"
            raise ApiError(422, f"texts: at most {self._settings.max_texts} in one request {got}")
        return await self._answer(request, body.texts, one=False)

    async def _answer(self, request: Request, texts: list[str], one: bool) -> Response:
        model = self._follower.model
        if model is None:
            raise not_ready(self._follower, self._settings)
        try:
            work = self._batcher.compute(model, texts)
            probabilities = await unless_disconnected(request, work)
        except BatchFailedError as error:
            raise ApiError(500, str(error)) from None
        if probabilities is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        predictions = [Prediction.of(model.labels, each).model_dump() for each in probabilities]
        for prediction in predictions:
            self._metrics.predicted(prediction["label"])
        # The digest of the model that answered; a newer one may be loaded by now.
        headers = {DIGEST_HEADER.decode(): model.source.digest}
        return JSONResponse(predictions[0] if one else predictions, headers=headers)


def create_classify_app(settings: ClassifySettings) -> FastAPI:
    """The ASGI app; its lifespan loads the model."""
    metrics = Metrics()
    batcher: Batcher[Classifier, str] = Batcher(
        lambda model, encoded: model.probabilities(encoded),
        settings.max_batch_size,
        settings.max_queue,
        metrics,
        encode=lambda model, texts: model.encode(texts),
    )
    metrics.queue_depth.set_function(lambda: batcher.depth)
    follower: Follower[Classifier] = Follower(
        location_of(settings), partial(_load, settings), settings.poll_seconds, metrics
    )
    app = create_app(
        "Trainyard: classify",
        settings,
        follower,
        metrics,
        parts=[batcher],
        roll_back=follower.roll_back,
        admin_api_key=settings.admin_api_key,
        computed_paths=COMPUTED_PATHS,
        full=batcher.full,
    )
    app.description = "The class of a text. [A page to try it](try)."
    routes = Routes(settings, follower, batcher, metrics)
    app.add_api_route(
        "/predict",
        routes.predict,
        methods=["POST"],
        response_model=Prediction,
        responses=ERRORS,
    )
    app.add_api_route(
        "/predict/batch",
        routes.predict_batch,
        methods=["POST"],
        response_model=list[Prediction],
        responses=ERRORS,
    )
    app.add_api_route("/try", routes.page, response_class=HTMLResponse, include_in_schema=False)
    app.add_api_route(
        "/", _redirect_to_docs, response_class=RedirectResponse, include_in_schema=False
    )
    add_docs(app)
    return app


async def _redirect_to_docs() -> RedirectResponse:
    return RedirectResponse("docs")


def _load(settings: ClassifySettings, source: VerifiedModel) -> "Classifier":
    from trainyard_serving.classify.classifier import Classifier

    return Classifier.load(source, settings)
