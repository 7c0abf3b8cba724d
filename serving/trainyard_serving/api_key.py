"""Asks for an API key, and compares it in constant time."""

import hashlib
import hmac
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from trainyard_serving.errors import ApiError


class ApiKey:
    """Answers 401 to requests without one of the keys, except on the open paths."""

    def __init__(
        self,
        app: ASGIApp,
        keys: list[str],
        open_paths: frozenset[str],
        form: Callable[[ApiError], Response],
    ) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._open_paths = open_paths
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._known(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "send a valid API key: Authorization: Bearer KEY",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await self._form(error)(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(("/docs/", "/static/"))

    def _known(self, scope: Scope) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        digest = _digest(given.strip())
        # Digests are of one length, and every key is compared: the time tells nothing.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
