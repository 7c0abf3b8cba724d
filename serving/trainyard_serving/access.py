"""Request ids, in answers and in the log, and a line of the log for each request."""

import logging
import re
import time
import uuid
from contextvars import ContextVar
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

HEALTH, METRICS = frozenset({"/health", "/ready"}), frozenset({"/metrics"})
# Asked every few seconds by machines: neither logged nor counted, else they would hide the rest.
PROBES = HEALTH | METRICS
REQUEST_ID_HEADER = "x-request-id"
_HEADER = REQUEST_ID_HEADER.encode()
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:/+=~-]{1,128}")
_MAX_PATH = 200  # characters of a path in the log

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def new_request_id() -> str:
    """An id for a request that has none."""
    return uuid.uuid4().hex


def request_id() -> str:
    """The id of the request that this task answers; empty outside of one."""
    return _request_id.get()


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter for handlers: `%(request)s` is `[ID] ` in what is logged for a request."""
    current = request_id()
    record.request = f"[{current}] " if current else ""
    return True


class RequestLog:
    """Gives each request an id, the client's own if it is well-formed, and logs each answer."""

    def __init__(self, app: ASGIApp, log_requests: bool) -> None:
        self._app = app
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        given = dict(scope["headers"]).get(_HEADER, b"")
        header = given if _WELL_FORMED.fullmatch(given) else new_request_id().encode()
        _request_id.set(header.decode())  # for the rest of this task, which is the request's own
        status, size = 0, 0

        async def identified(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (_HEADER, header)]}
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, identified)
        finally:
            if self._log_requests and scope["path"] not in PROBES:
                # Without the query, which may have keys; quoted, so that it stays one line.
                path = quote(scope["path"], safe="/:@!$&'()*+,;=~-._")[:_MAX_PATH]
                seconds = time.monotonic() - started
                log.info("%s %s %d %.3f s %d bytes", scope["method"], path, status, seconds, size)
