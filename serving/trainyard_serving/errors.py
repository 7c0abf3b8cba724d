"""What goes wrong on purpose: answers other than 200, and models that can't be served."""

import math

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class ModelUnavailableError(Exception):
    """There is no model to serve; the message is one line that says why."""


class BadModelError(Exception):
    """A whole model that must not be served; the message is one line that says why."""


class ApiError(HTTPException):
    """An answer other than 200. Each app gives it the form its clients expect.

    Attributes:
        code: what went wrong, for programs, such as `queue_full`.
        param: the field of the request that is wrong.
        retry_after: whole seconds after which to try again, if that may help.
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
    """There is no room for what was asked."""

    def __init__(self, what: str, seconds: float) -> None:
        """`what` waits, such as `texts`; `seconds`: a guess at when there will be room."""
        message = f"the server is busy: too many {what} are waiting"
        retry_after = min(60, max(1, math.ceil(seconds)))
        super().__init__(429, message, "queue_full", retry_after=retry_after)


def as_api_error(request: Request, error: HTTPException) -> ApiError:
    """`error` as one of ours: the framework's own (no such route) lack a code and a sentence."""
    if isinstance(error, ApiError):
        return error
    what = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, what, headers=dict(error.headers or {}))


def detail_form(error: ApiError) -> JSONResponse:
    """FastAPI's usual form: {"detail": ...}."""
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
