"""Errors: answers other than 200, and models that cannot be served."""

import math

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class ModelUnavailableError(Exception):
    """There is no model to serve; the message is one line that says why."""


class BadModelError(Exception):
    """A complete model that must not be served; the message is one line that says why."""


def one_line(error: object, limit: int = 300) -> str:
    """An error of a library as one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class ApiError(HTTPException):
    """An answer other than 200. Each app writes it in the form that its clients expect.

    Attributes:
        code: the kind of error, for programs, such as `queue_full`.
        param: the field of the request that is wrong.
        retry_after: seconds after which a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, {**retry, **(headers or {})} or None)
        self.code = code
        self.param = param
        self.retry_after = retry_after


class QueueFullError(ApiError):
    """The queue is full."""

    def __init__(self, what: str, seconds: float) -> None:
        """
        Args:
            what: what the queue holds, such as `texts`.
            seconds: an estimate of when the queue will have room.
        """
        message = f"the server is busy: too many {what} are waiting"
        retry_after = min(60, max(1, math.ceil(seconds)))
        super().__init__(429, message, "queue_full", retry_after=retry_after)


def as_api_error(request: Request, error: HTTPException) -> ApiError:
    """`error` as an ApiError. An error of the framework (no such route) gets the request's name."""
    if isinstance(error, ApiError):
        return error
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=dict(error.headers or {}))


def without_json(request: Request, invalid: RequestValidationError) -> ApiError | None:
    """The answer to a body that was not read, because it is empty or not declared as JSON.

    None if it was read: then the fields in it are wrong.
    """
    locations = [error["loc"] for error in invalid.errors()]
    if not any(where[0] == "body" for where in locations):
        return None
    send = "send JSON, with the header Content-Type: application/json"
    if any(
        where == ("body",) and error["type"] == "missing"
        for where, error in zip(locations, invalid.errors(), strict=True)
    ):
        return ApiError(400, f"the body is empty: {send}", "empty_body")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return None
    got = f"is {kind[:100]}" if kind else "has no Content-Type"
    return ApiError(415, f"the body {got}: {send}", "unsupported_media_type")


def detail_response(error: ApiError) -> JSONResponse:
    """FastAPI's usual form: {"detail": ...}."""
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
