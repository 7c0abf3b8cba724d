"""Requests and responses of POST /answer: JSON with an image's URL, or a form with an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from trainyard_serving.errors import ApiError

MAX_FIELD = 64 * 1024  # of a form, except the image
MAX_QUESTION = 8000


class _QuestionFields(BaseModel):
    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    max_tokens: int | None = Field(
        default=None, ge=1, description="Largest number of tokens in the answer."
    )


class AnswerRequest(_QuestionFields):
    """The JSON body of POST /answer."""

    image_url: str = Field(
        description="http:// or https://, fetched by the server; or data:image/TYPE;base64,DATA."
    )


class ImageSize(BaseModel):
    """Size of the original image, upright, in pixels."""

    width: int
    height: int


class AnswerBody(BaseModel):
    """The response of POST /answer."""

    answer: str
    model: str
    usage: dict[str, Any] = Field(description="prompt_tokens, completion_tokens, total_tokens")
    image: ImageSize
    seconds: float = Field(description="Time from the end of the request to this answer.")


@dataclass(frozen=True)
class Question:
    """A valid request with either `image_url` or `image`."""

    text: str
    max_tokens: int | None
    image_url: str | None = None
    image: bytes | None = None


REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": AnswerRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "question"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    **_QuestionFields.model_json_schema()["properties"],
                },
            }
        },
    },
}


async def read_question(request: Request, max_image_bytes: int) -> Question:
    """Read the request's body, of which a middleware bounds the size and the time.

    Raises ApiError (400, 408, 413, 415, 422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await read_body(request))
    if kind == "multipart/form-data":
        with _complete():
            return await _from_form(request, max_image_bytes)
    raise ApiError(
        415,
        "send JSON with image_url and question (content-type: application/json),"
        " or a form with image and question (multipart/form-data)",
        "unsupported_media_type",
    )


async def read_body(request: Request) -> bytes:
    """The body, of which a middleware bounds the size and the time.

    Raises ApiError (400, 408, 413).
    """
    with _complete():
        return await request.body()


@contextmanager
def _complete() -> Iterator[None]:
    """A body must be complete before the client disconnects."""
    try:
        yield
    except ClientDisconnect:
        raise ApiError(400, "the body is incomplete", "body_incomplete") from None


def _from_json(body: bytes) -> Question:
    try:
        fields = AnswerRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, 422) from None
    return Question(fields.question, fields.max_tokens, image_url=fields.image_url)


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # never to disk, which is read-only; the body's limit bounds the memory


async def _from_form(request: Request, max_image_bytes: int) -> Question:
    try:
        form = await _InMemory(
            request.headers, request.stream(), max_files=1, max_fields=3, max_part_size=MAX_FIELD
        ).parse()
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise ApiError(400, f"the form cannot be read: {reason}", "bad_form") from None
    fields = dict(form)
    image = fields.pop("image", None)
    if not isinstance(image, UploadFile):
        raise ApiError(422, "image: send the image as a file of the form", "no_image", "image")
    data = await image.read()
    if len(data) > max_image_bytes:
        message = f"image: is larger than {max_image_bytes} bytes"
        raise ApiError(413, message, "image_too_large", "image")
    try:
        question = _QuestionFields.model_validate(fields)
    except ValidationError as error:
        raise invalid(error, 422) from None
    return Question(question.question, question.max_tokens, image=data)


def invalid(invalid: ValidationError, status: int) -> ApiError:
    """The first error of a body."""
    error = invalid.errors()[0]
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", "invalid_json")
    if error["type"] == "extra_forbidden":
        message = f"{where} is not supported: leave it out"
        return ApiError(status, message, "unsupported_field", where)
    message = error["msg"].removeprefix("Value error, ")
    return ApiError(status, f"{where}: {message}" if where else message, "invalid", where or None)
