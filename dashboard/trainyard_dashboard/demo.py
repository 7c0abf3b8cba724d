"""The demo: forwards prompts to one configured model server."""

import json
import time
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from trainyard_serving.concurrency import Gate
from trainyard_serving.connections import tls_context
from trainyard_serving.errors import ApiError
from trainyard_serving.middleware import DIGEST_HEADER

Kind = Literal["generate", "classify", "vision"]

ROUTES: dict[Kind, str] = {
    "generate": "/v1/completions",
    "classify": "/predict",
    "vision": "/answer",
}
INFO_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 60.0
MAX_BYTES = 1 << 20  # of a response
MAX_CHARACTERS = 8000  # of a prompt
MAX_TOKENS = 256
MAX_RUNNING = 2  # prompts at a time
INFO_SECONDS = 10.0  # until the server is probed again: it may have been replaced


class Prompt(BaseModel):
    """A prompt from the page."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    image_url: str | None = Field(default=None, max_length=4000, description="vision only")
    max_tokens: int = Field(default=128, ge=1, le=MAX_TOKENS)


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """The model's answer."""

    kind: Kind
    text: str
    classes: list[ClassProbability] = Field(
        default_factory=list, description="The most probable first."
    )
    tokens: int | None = None
    seconds: float = Field(description="Round trip from the dashboard to the server.")
    digest: str | None = Field(default=None, description="Of the model that answered.")


class DemoInfo(BaseModel):
    """The server that the demo sends prompts to."""

    url: str | None
    kind: Kind | None = None
    problem: str = Field(default="", description="Why it can't be used; one line.")
    max_tokens: int = MAX_TOKENS


class Demo:
    """A client of the configured model server."""

    def __init__(self, url: str | None, key: SecretStr | None, max_queue: int) -> None:
        self._url = url.rstrip("/") if url else None
        self._headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self.gate = Gate(MAX_RUNNING, max_queue)
        self._client: httpx.AsyncClient | None = None
        self._info: tuple[float, DemoInfo] | None = None

    async def info(self) -> DemoInfo:
        """Return the server's URL and kind, or why it can't be used."""
        if self._url is None:
            problem = "no server is configured; start the dashboard with --demo-url URL"
            return DemoInfo(url=None, problem=problem)
        if self._info is None or time.monotonic() - self._info[0] > INFO_SECONDS:
            self._info = time.monotonic(), await self._probe(self._url)
        return self._info[1]

    async def ask(self, prompt: Prompt) -> Answer:
        """Return the model's answer.

        Raises:
            ApiError: 429 (queue full), 502, 503 or 504 (the server failed), or 422 (it rejects the
                prompt).
        """
        info = await self.info()
        if info.kind is None:
            raise ApiError(503, info.problem, "no_model")
        async with self.gate.admitted(), self.gate.running():
            started = time.monotonic()
            status, headers, body = await self._call(
                "POST", ROUTES[info.kind], ANSWER_TIMEOUT, _request(info.kind, prompt)
            )
        if status >= 400:
            raise _error(status, body)
        try:
            answer = _answer(info.kind, body, time.monotonic() - started)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ApiError(
                502, "the server's response has an unknown form", "demo_failed"
            ) from None
        return answer.model_copy(update={"digest": headers.get(DIGEST_HEADER.decode())})

    async def _probe(self, url: str) -> DemoInfo:
        try:
            status, _, body = await self._call("GET", "/openapi.json", INFO_TIMEOUT)
        except ApiError as error:
            return DemoInfo(url=url, problem=str(error.detail))
        paths = body.get("paths") if isinstance(body, dict) else None
        for kind, route in ROUTES.items():
            if status == 200 and isinstance(paths, dict) and route in paths:
                return DemoInfo(url=url, kind=kind)
        problem = f"{url} is not a Trainyard generate, classify or vision server"
        return DemoInfo(url=url, problem=problem)

    async def _call(
        self, method: str, path: str, seconds: float, body: dict[str, Any] | None = None
    ) -> tuple[int, httpx.Headers, Any]:
        """Return the response's status, headers and JSON. Raises ApiError (502, 504)."""
        if self._client is None:
            # No redirects: they would lead away from the configured address.
            self._client = httpx.AsyncClient(verify=tls_context(), trust_env=False)
        url = f"{self._url}{path}"
        data = bytearray()  # of many small chunks
        try:
            async with self._client.stream(
                method, url, json=body, headers=self._headers, timeout=seconds
            ) as response:
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise ApiError(502, "the server's response is too long", "demo_failed")
            return response.status_code, response.headers, json.loads(data)
        except httpx.TimeoutException:
            raise ApiError(
                504, f"{self._url} does not respond within {seconds:g} s", "demo_timeout"
            ) from None
        except httpx.HTTPError as error:
            raise ApiError(502, f"{self._url} can't be reached: {error}", "demo_failed") from None
        except (ValueError, RecursionError):
            raise ApiError(502, f"{self._url} does not respond with JSON", "demo_failed") from None


def _request(kind: Kind, prompt: Prompt) -> dict[str, Any]:
    if kind == "classify":
        return {"text": prompt.text}
    if kind == "vision":
        return {
            "question": prompt.text,
            "image_url": prompt.image_url or "",
            "max_tokens": prompt.max_tokens,
        }
    return {"prompt": prompt.text, "max_tokens": prompt.max_tokens, "temperature": 0.8}


def _answer(kind: Kind, body: Any, seconds: float) -> Answer:
    if kind == "classify":
        classes = [ClassProbability(label=name, probability=p) for name, p in body["probs"].items()]
        classes.sort(key=lambda one: one.probability, reverse=True)
        return Answer(kind=kind, text=body["label"], classes=classes[:10], seconds=seconds)
    text = body["answer"] if kind == "vision" else body["choices"][0]["text"]
    tokens = (body.get("usage") or {}).get("completion_tokens")
    return Answer(kind=kind, text=text, tokens=tokens, seconds=seconds)


def _error(status: int, body: Any) -> ApiError:
    """The server's error with its own message: 422 if the prompt is at fault, otherwise 502."""
    detail = body.get("detail") or body.get("error") if isinstance(body, dict) else None
    detail = detail.get("message") if isinstance(detail, dict) else detail
    message = f"the server responded with status {status}: {str(detail)[:500]}"
    if status in (401, 403):
        return ApiError(
            502,
            f"{message}: start the dashboard with the server's key (--demo-api-key)",
            "demo_key",
        )
    if status == 429 or status == 503:
        return ApiError(status, message, "demo_busy", retry_after=5)
    return ApiError(422 if status < 500 else 502, message, "demo_refused")
