"""The live demo: passes questions on to the one server that was configured."""

import json
import time
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from trainyard_serving.errors import ApiError
from trainyard_serving.gate import Gate
from trainyard_serving.middleware import DIGEST_HEADER
from trainyard_serving.tls import tls_context

Kind = Literal["generate", "classify", "vision"]

ROUTES: dict[Kind, str] = {
    "generate": "/v1/completions",
    "classify": "/predict",
    "vision": "/answer",
}
LOOK_SECONDS = 5.0
ANSWER_SECONDS = 60.0
MAX_BYTES = 1 << 20  # of an answer
MAX_TEXT = 8000  # characters
MAX_TOKENS = 256
RUNNING = 2
DESCRIPTION_SECONDS = 10.0  # the server may be replaced by one of another kind


class Question(BaseModel):
    """What the page asks."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=MAX_TEXT)
    image_url: str | None = Field(default=None, max_length=4000, description="vision only")
    max_tokens: int = Field(default=128, ge=1, le=MAX_TOKENS)


class ClassShare(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the model said."""

    kind: Kind
    text: str
    classes: list[ClassShare] = Field(default_factory=list, description="The likeliest first.")
    tokens: int | None = None
    seconds: float = Field(description="From the dashboard to the server and back.")
    digest: str | None = Field(default=None, description="Of the model that answered.")


class About(BaseModel):
    """Whom the demo asks."""

    url: str | None
    kind: Kind | None = None
    problem: str = Field(default="", description="Why it can't be asked; one line.")
    max_tokens: int = MAX_TOKENS


class Demo:
    """One server that answers."""

    def __init__(self, url: str | None, key: SecretStr | None, max_queue: int) -> None:
        self._url = url.rstrip("/") if url else None
        self._headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self.gate = Gate(RUNNING, max_queue)
        self._client: httpx.AsyncClient | None = None
        self._about: tuple[float, About] | None = None

    async def about(self) -> About:
        """Whom it asks, and whether that one can be asked."""
        if self._url is None:
            return About(
                url=None, problem="no server is configured: start the dashboard with --demo-url URL"
            )
        if self._about is None or time.monotonic() - self._about[0] > DESCRIPTION_SECONDS:
            self._about = time.monotonic(), await self._look(self._url)
        return self._about[1]

    async def ask(self, question: Question) -> Answer:
        """Raises ApiError: 429, 502, 503, 504, or what the server refuses (4xx)."""
        about = await self.about()
        if about.kind is None:
            raise ApiError(503, about.problem, "no_model")
        async with self.gate.place(), self.gate.turn():
            started = time.monotonic()
            status, headers, body = await self._call(
                "POST", ROUTES[about.kind], ANSWER_SECONDS, _body(about.kind, question)
            )
        if status >= 400:
            raise _refused(status, body)
        try:
            answer = _answer(about.kind, body, time.monotonic() - started)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise ApiError(502, "the server's answer is not understood", "demo_failed") from None
        return answer.model_copy(update={"digest": headers.get(DIGEST_HEADER.decode())})

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _look(self, url: str) -> About:
        try:
            status, _, body = await self._call("GET", "/openapi.json", LOOK_SECONDS)
        except ApiError as error:
            return About(url=url, problem=str(error.detail))
        paths = body.get("paths") if isinstance(body, dict) else None
        for kind, route in ROUTES.items():
            if status == 200 and isinstance(paths, dict) and route in paths:
                return About(url=url, kind=kind)
        return About(url=url, problem=f"{url} is no generate, classify or vision server of ours")

    async def _call(
        self, method: str, path: str, seconds: float, body: dict[str, Any] | None = None
    ) -> tuple[int, httpx.Headers, Any]:
        """Status, headers and JSON of an answer. Raises ApiError (502, 504)."""
        if self._client is None:
            # No redirects: they would lead to another address than the configured one.
            self._client = httpx.AsyncClient(verify=tls_context(), trust_env=False)
        url = f"{self._url}{path}"
        data = b""
        try:
            async with self._client.stream(
                method, url, json=body, headers=self._headers, timeout=seconds
            ) as response:
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise ApiError(502, "the server's answer is too long", "demo_failed")
            return response.status_code, response.headers, json.loads(data)
        except httpx.TimeoutException:
            raise ApiError(
                504, f"{self._url} does not answer within {seconds:g} s", "demo_timeout"
            ) from None
        except httpx.HTTPError as error:
            raise ApiError(502, f"{self._url} can't be reached: {error}", "demo_failed") from None
        except (ValueError, RecursionError):
            raise ApiError(502, f"{self._url} answers no JSON", "demo_failed") from None


def _body(kind: Kind, question: Question) -> dict[str, Any]:
    if kind == "classify":
        return {"text": question.text}
    if kind == "vision":
        return {
            "question": question.text,
            "image_url": question.image_url or "",
            "max_tokens": question.max_tokens,
        }
    return {"prompt": question.text, "max_tokens": question.max_tokens, "temperature": 0.8}


def _answer(kind: Kind, body: Any, seconds: float) -> Answer:
    if kind == "classify":
        shares = [ClassShare(label=label, probability=p) for label, p in body["probs"].items()]
        shares.sort(key=lambda share: share.probability, reverse=True)
        return Answer(kind=kind, text=body["label"], classes=shares[:10], seconds=seconds)
    text = body["answer"] if kind == "vision" else body["choices"][0]["text"]
    tokens = (body.get("usage") or {}).get("completion_tokens")
    return Answer(kind=kind, text=text, tokens=tokens, seconds=seconds)


def _refused(status: int, body: Any) -> ApiError:
    """The server's refusal, in its words: 4xx is the question's fault, all else the server's."""
    said = body.get("detail") or body.get("error") if isinstance(body, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    message = f"the server answers {status}: {str(said)[:500]}"
    if status in (401, 403):
        return ApiError(502, f"{message}: start the dashboard with its --demo-api-key", "demo_key")
    if status == 429 or status == 503:
        return ApiError(status, message, "demo_busy", retry_after=5)
    return ApiError(422 if status < 500 else 502, message, "demo_refused")
