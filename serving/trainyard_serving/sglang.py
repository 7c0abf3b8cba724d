"""An SGLang server as a backend: checks whether it is ready, and sends requests to it.

Written against SGLang 0.5.23. SGLang opens its port once the model is loaded; while it warms up,
GET /ready answers 503.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trainyard_serving.connections import tls_context
from trainyard_serving.errors import ApiError, ModelUnavailableError, one_line
from trainyard_serving.model_store.locations import ModelLocation
from trainyard_serving.model_store.verified import ServedModel, VerifiedModel
from trainyard_serving.settings import SGLangSettings
from trainyard_storage.checkpoints import InvalidCheckpointError

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
RETRY_SECONDS = 5  # Retry-After while SGLang is not available


class NotReadyError(Exception):
    """SGLang cannot answer yet; the message is one line that says why."""


@dataclass(frozen=True)
class ModelInfo:
    """The model that SGLang reports to serve."""

    name: str
    path: str
    max_model_len: int | None
    accepts_images: bool


class SGLang:
    """An SGLang server; a thread polls whether it is ready."""

    def __init__(
        self,
        settings: SGLangSettings,
        poll_seconds: float,
        model_name: str | None = None,
        location: ModelLocation | None = None,
        needs_images: bool = False,
    ) -> None:
        """
        Args:
            model_name: the model that it must serve; None allows any.
            location: where its model comes from. The model that SGLang loaded must be there, and
                is verified before requests are answered. Without it the model's files are unknown.
            needs_images: whether the model must accept images.
        """
        self._url = settings.sglang_url.rstrip("/")
        key = settings.sglang_api_key
        self._headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._answer_seconds = settings.answer_seconds
        self._poll_seconds = poll_seconds
        self._model_name = model_name
        self._location = location
        self._needs_images = needs_images
        self._source: VerifiedModel | None = None
        self._info: ModelInfo | None = None
        self._reason = f"SGLang at {self._url} has not been contacted yet"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sglang-watch")
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        return self._info is not None

    @property
    def served(self) -> ServedModel | None:
        return self._source.served if self._info and self._source else None

    @property
    def source(self) -> VerifiedModel | None:
        """The model's verified files; None when they are unknown."""
        return self._source

    @property
    def details(self) -> dict[str, Any]:
        return {"engine": "sglang"} | ({"model": info.name} if (info := self._info) else {})

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def refused(self) -> list[str]:
        return []  # SGLang serves one model and never loads a newer one

    @property
    def model(self) -> ModelInfo:
        """Raises ApiError (503) while SGLang is not ready."""
        if (info := self._info) is None:
            raise ApiError(503, self._reason, "model_not_loaded", retry_after=RETRY_SECONDS)
        return info

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The gate bounds the connections. SGLang runs nearby: no proxy of the environment is used.
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=httpx.Timeout(self._answer_seconds, connect=PROBE_SECONDS),
            limits=httpx.Limits(max_connections=None),
            verify=tls_context(),
            trust_env=False,
        )
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._client and self._loop:
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()

    @asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        """SGLang's response to `body`, with status 200; its content has not been read.

        Raises ApiError: SGLang's error message, or why it cannot answer.
        """
        assert self._client is not None
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refusal(response)
                yield response
        except httpx.TimeoutException:
            late = f"SGLang did not answer within {self._answer_seconds:g} s"
            raise ApiError(504, late, "model_timeout") from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _refusal(self, response: httpx.Response) -> ApiError:
        """SGLang's error as an answer to the client."""
        status, message = response.status_code, _message(response)
        if status in (401, 403):
            log.error("SGLang refuses our key: set --sglang-api-key")
            return ApiError(
                503, "SGLang refuses this server's key", "model_refuses", retry_after=RETRY_SECONDS
            )
        if status in (429, 503):
            return ApiError(
                503, f"SGLang is busy: {message}", "model_busy", retry_after=RETRY_SECONDS
            )
        if 400 <= status < 500:
            return ApiError(400, f"SGLang refuses the request: {message}", "model_refused")
        log.error("SGLang answered %d: %s", status, message)
        return ApiError(502, f"SGLang failed on this request ({status})", "model_failed")

    def _unreachable(self, error: httpx.TransportError) -> ApiError:
        log.warning("SGLang at %s: %s", self._url, error or type(error).__name__)
        message = f"SGLang at {self._url} does not answer"
        return ApiError(503, message, "model_not_loaded", retry_after=RETRY_SECONDS)

    def _watch(self) -> None:
        with httpx.Client(
            base_url=self._url,
            headers=self._headers,
            timeout=PROBE_SECONDS,
            verify=tls_context(),
            trust_env=False,
        ) as client:
            while not self._stop.is_set():
                try:
                    info = self._probe(client)
                    if self._info != info:
                        log.info("SGLang at %s serves %s", self._url, info.name)
                    self._info = info
                except NotReadyError as error:
                    self._set_not_ready(str(error))
                except Exception as error:
                    log.exception("the check of SGLang failed")
                    self._set_not_ready(
                        f"the check of SGLang failed: {type(error).__name__}: {error}"
                    )
                self._stop.wait(self._poll_seconds)

    def _set_not_ready(self, reason: str) -> None:
        if self._info or reason != self._reason:
            log.warning("%s; checking again every %g s", reason, self._poll_seconds)
        self._info, self._reason = None, reason

    def _probe(self, client: httpx.Client) -> ModelInfo:
        """The model that SGLang serves, once it is ready and the model is the expected one.

        Raises NotReadyError.
        """
        try:
            if (status := client.get("/ready").status_code) != 200:
                raise NotReadyError(self._why_not_ready(status))
            info = _model_info(client.get("/model_info"), client.get("/v1/models"))
        except httpx.TransportError:
            raise NotReadyError(f"SGLang at {self._url} does not answer: not started yet") from None
        if self._model_name not in (None, info.name):
            raise NotReadyError(f"SGLang serves {info.name!r}, not {self._model_name!r}")
        if self._needs_images and not info.accepts_images:
            raise NotReadyError(f"SGLang serves {info.name!r}, which accepts no images")
        if self._location and (self._info is None or self._info.path != info.path):
            self._source = self._verified(self._location, Path(info.path).resolve())
        return info

    def _verified(self, location: ModelLocation, loaded: Path) -> VerifiedModel:
        """The model in the directory `loaded`, if `location` has it and it verifies.

        Raises NotReadyError.
        """
        self._info = self._source = None
        self._reason = f"the model {loaded} is being verified"
        try:
            for candidate in location.candidates():
                if Path(candidate.name).resolve() == loaded:
                    source = candidate.fetch()
                    log.info("verified %s, %s", source.path, source.digest)
                    return source
        except (ModelUnavailableError, InvalidCheckpointError) as error:
            raise NotReadyError(str(error)) from None
        raise NotReadyError(f"SGLang serves {loaded}, which is not what --run-dir or --model names")

    def _why_not_ready(self, status: int) -> str:
        if status == 503:
            return f"SGLang at {self._url} is still loading its model"
        return f"SGLang at {self._url} answers {status} to /ready: 0.5.23 or newer is needed"


def _model_info(info: httpx.Response, models: httpx.Response) -> ModelInfo:
    for response in (info, models):
        if response.status_code in (401, 403):
            raise NotReadyError("SGLang refuses this server's key: set --sglang-api-key")
        if response.status_code != 200:
            raise NotReadyError(f"SGLang answers {response.status_code} to {response.url.path}")
    try:
        loaded, card = info.json(), models.json()["data"][0]
        return ModelInfo(
            card["id"],
            loaded["model_path"],
            card.get("max_model_len"),
            bool(loaded.get("has_image_understanding")),
        )
    except (ValueError, LookupError, TypeError) as error:
        raise NotReadyError(f"SGLang's answers cannot be parsed: {error!r}") from None


def _message(response: httpx.Response) -> str:
    """The message in an error of SGLang's: at the top level, or under `error`."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error if isinstance(error, str) else error["message"]
    except (ValueError, LookupError, TypeError, AttributeError):
        text = response.text or f"status {response.status_code}"
    return one_line(text, 500)
