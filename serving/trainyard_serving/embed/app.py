"""The embedding server: vectors of texts, in the forms of OpenAI's API and of TEI."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from trainyard_api import __version__
from trainyard_serving.app import create_app, not_ready
from trainyard_serving.batcher import Batcher, BatchFailedError, Row
from trainyard_serving.concurrency import ComputingThreads
from trainyard_serving.connections import CLIENT_CLOSED_REQUEST, unless_disconnected
from trainyard_serving.embed.requests import EmbeddingsRequest, EmbedRequest, Texts
from trainyard_serving.embed.settings import EmbedSettings
from trainyard_serving.errors import ApiError, QueueFullError
from trainyard_serving.generate.engine import JsonDict
from trainyard_serving.generate.info import versions
from trainyard_serving.generate.openai_api import invalid_request, openai_error_response
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import DIGEST_HEADER
from trainyard_serving.model_store.follower import Follower
from trainyard_serving.model_store.locations import location_of
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_serving.pages import add_docs

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.embed.embedder import Embedder, TokenIds

EMBEDDINGS, EMBED = "/v1/embeddings", "/embed"
# Requests that are tokenised, or whose answers are written, at a time: their memory adds up.
ENCODING_THREADS = 2
# The texts that wait for that fill at most so many of the largest bodies.
WAITING_BODIES = 16

# The body of an answer, of the embeddings and the number of tokens of a request.
Write = Callable[[list[Row], int], bytes]


def create_embed_app(settings: EmbedSettings) -> FastAPI:
    """The ASGI app; its lifespan loads the model."""
    metrics = Metrics()
    batcher: Batcher[Embedder, TokenIds] = Batcher(
        lambda model, encoded: model.compute(encoded),
        settings.max_batch_size,
        settings.max_queue,
        metrics,
        max_batch_tokens=settings.max_batch_tokens,
    )
    metrics.queue_depth.set_function(lambda: batcher.depth)
    threads = ComputingThreads(ENCODING_THREADS, settings.max_queue, "encoder")
    follower: Follower[Embedder] = Follower(
        location_of(settings), partial(_load, settings), settings.poll_seconds, metrics
    )
    app = create_app(
        "Trainyard: embed",
        settings,
        follower,
        metrics,
        error_response=openai_error_response,
        invalid=invalid_request,
        parts=[batcher, threads],
        roll_back=follower.roll_back,
        admin_api_key=settings.admin_api_key,
        computed_paths=frozenset({EMBEDDINGS, EMBED}),
        full=batcher.full,
    )
    app.description = (
        "Embeddings of texts, as OpenAI's API and Text Embeddings Inference give them."
    )
    Routes(settings, follower, batcher, threads, metrics).add_to(app)
    add_docs(app)
    return app


class Routes:
    """The app's own routes; their docstrings are their descriptions in OpenAPI."""

    def __init__(
        self,
        settings: EmbedSettings,
        follower: "Follower[Embedder]",
        batcher: "Batcher[Embedder, TokenIds]",
        threads: ComputingThreads,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._batcher = batcher
        self._threads = threads
        self._metrics = metrics
        self._num_waiting = 0  # characters, or token ids, that are not tokenised yet

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route(EMBEDDINGS, self.embeddings, methods=["POST"], response_model=None)
        app.add_api_route(EMBED, self.embed, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.models, response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.one_model, response_model=None)
        app.add_api_route("/info", self.info, response_model=None)
        app.add_api_route("/", self.docs, response_class=RedirectResponse, include_in_schema=False)

    async def embeddings(self, request: Request, body: EmbeddingsRequest) -> Response:
        """The embedding of each input, in OpenAI's form."""
        model = self._check_name(body.model)
        write = partial(
            _openai_json,
            model=self._name_of(model),
            as_base64=body.encoding_format == "base64",
            normalize=model.normalize,
            dimensions=body.dimensions,
        )
        return await self._answer(
            request, model, "input", body.input, body.truncate, body.dimensions, write
        )

    async def embed(self, request: Request, body: EmbedRequest) -> Response:
        """The embedding of each input, in the form of Text Embeddings Inference."""
        model = self._current_model()
        write = partial(
            _tei_json, normalize=body.normalize is not False, dimensions=body.dimensions
        )
        return await self._answer(
            request, model, "inputs", body.inputs, body.truncate, body.dimensions, write
        )

    async def models(self) -> JsonDict:
        """The list of models, which has one entry."""
        return {"object": "list", "data": [self._model_json(self._current_model())]}

    async def one_model(self, name: str) -> JsonDict:
        """The model by its name."""
        return self._model_json(self._check_name(name))

    async def info(self) -> JsonDict:
        """The model, the limits of requests, and the versions of the server."""
        model = self._current_model()
        limits = ("max_texts", "max_queue", "max_batch_size", "max_batch_tokens", "max_body_bytes")
        return {
            "model": {
                "id": self._name_of(model),
                "step": model.source.step,
                "digest": model.source.digest,
                **model.description,
            },
            "limits": {name: getattr(self._settings, name) for name in limits},
            "engine": self._settings.engine,
            "version": __version__,
            "versions": versions(),
        }

    async def docs(self) -> RedirectResponse:
        """To the page on which every route can be tried."""
        return RedirectResponse("docs")

    async def _answer(
        self,
        request: Request,
        model: "Embedder",
        param: str,
        texts: Texts,
        truncate: bool | None,
        dimensions: int | None,
        write: Write,
    ) -> Response:
        """The response of `write`. A client that disconnects cancels the computation.

        Raises ApiError.
        """
        if len(texts) > (most := self._settings.max_texts):
            message = f"{param}: at most {most} texts in one request (got {len(texts)})"
            raise ApiError(400, message, "invalid_value", param)
        model.check_dimensions(dimensions)

        async def work() -> bytes:
            with self._room_for(texts):
                encoded = await self._threads.run(self._encode, model, param, texts, bool(truncate))
            rows = await self._batcher.compute(model, encoded)
            # Many numbers take a while to write, and the event loop must go on.
            return await self._threads.finish(write, rows, sum(map(len, encoded)))

        try:
            content = await unless_disconnected(request, work())
        except BatchFailedError as error:
            raise ApiError(500, str(error)) from None
        if content is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        # The digest of the model that answered; a newer one may be loaded by now.
        headers = {DIGEST_HEADER.decode(): model.source.digest}
        return Response(content, media_type="application/json", headers=headers)

    @contextmanager
    def _room_for(self, texts: Texts) -> Iterator[None]:
        """Counts texts that wait to be tokenised. Raises QueueFullError for too many of them."""
        if error := self._batcher.full(len(texts)):
            raise error
        size = sum(map(len, texts))
        if self._num_waiting + size > WAITING_BODIES * self._settings.max_body_bytes:
            raise QueueFullError("requests", 1)
        self._num_waiting += size
        try:
            yield
        finally:
            self._num_waiting -= size

    def _encode(
        self, model: "Embedder", param: str, texts: Texts, truncate: bool
    ) -> list["TokenIds"]:
        started = time.monotonic()
        encoded = []
        for number, text in enumerate(texts):
            name = param if len(texts) == 1 else f"{param}[{number}]"
            encode = model.encode if isinstance(text, str) else model.check_ids
            encoded.append(encode(text, name, truncate))  # type: ignore[arg-type]
        seconds = self._metrics.stage_seconds.labels("tokenise")
        seconds.observe(time.monotonic() - started)
        return encoded

    def _current_model(self) -> "Embedder":
        """The model that answers now. Raises ApiError while there is none."""
        model = self._follower.model
        if model is None:
            raise not_ready(self._follower, self._settings)
        return model

    def _check_name(self, name: str | None) -> "Embedder":
        """The model. Raises ApiError: 503 while there is none, 404 if its name differs."""
        model = self._current_model()
        if name not in (None, served := self._name_of(model)):
            message = f"no model {name!r} here: this server has {served!r}"
            raise ApiError(404, message, "model_not_found", "model")
        return model

    def _name_of(self, model: "Embedder") -> str:
        return self._settings.served_model_name or model.source.run

    def _model_json(self, model: "Embedder") -> JsonDict:
        return {
            "id": self._name_of(model),
            "object": "model",
            "created": int(model.source.created.timestamp()),
            "owned_by": "trainyard",
            **model.description,
            "max_texts": self._settings.max_texts,
            "step": model.source.step,
            "digest": model.source.digest,
        }


def _openai_json(
    rows: list[Row],
    num_tokens: int,
    model: str,
    as_base64: bool,
    normalize: bool,
    dimensions: int | None,
) -> bytes:
    write = _base64 if as_base64 else _numbers
    written = (
        f'{{"object":"embedding","index":{index},"embedding":{write(row)}}}'
        for index, row in enumerate(_finished(rows, normalize, dimensions))
    )
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    name = json.dumps(model, ensure_ascii=False)
    return (
        f'{{"object":"list","data":[{",".join(written)}],'
        f'"model":{name},"usage":{json.dumps(usage)}}}'
    ).encode()


def _tei_json(rows: list[Row], num_tokens: int, normalize: bool, dimensions: int | None) -> bytes:
    # One row at a time: the event loop waits while a whole answer is written by one call.
    written = map(_numbers, _finished(rows, normalize, dimensions))
    return f"[{','.join(written)}]".encode()


def _finished(rows: list[Row], normalize: bool, dimensions: int | None) -> Row:
    """Embeddings (texts, dimensions) as a client asks for them. Raises ApiError."""
    embeddings = np.stack(rows)[:, :dimensions]
    if not np.isfinite(embeddings).all():  # JSON cannot say it
        raise ApiError(500, "the model computes NaN or infinity for this input", "not_finite")
    if not normalize:
        return embeddings
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    finished: Row = embeddings / np.maximum(lengths, 1e-12)
    return finished


def _base64(row: Row) -> str:
    """As OpenAI's client asks for it: float32, little-endian."""
    return f'"{base64.b64encode(row.astype("<f4").tobytes()).decode()}"'


def _numbers(row: Row) -> str:
    """Nine digits tell any two float32 apart; json.dumps would write the 17 of a float64."""
    return "[" + ",".join(["%.9g"] * len(row)) % tuple(row.tolist()) + "]"


def _load(settings: EmbedSettings, source: VerifiedModel) -> "Embedder":
    from trainyard_serving.embed.embedder import Embedder

    return Embedder.load(source, settings)
