"""The API server as JSON over the official package's ApiClient, and the errors it answers with.

The package does connections, TLS and tokens. Its typed classes are not used: importing them costs
100 MiB, and the JSON that they wrap is all we need.
"""

import json
import os
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

FIELD_MANAGER = "trainyard"
REQUEST_SECONDS = 30.0

_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
Object = dict[str, Any]


class ExpectedError(Exception):
    """An error that its one line explains: a traceback would add nothing."""


class ApiError(ExpectedError):
    """The API server refused a request.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Kubernetes' word for it (NotFound, AlreadyExists, Conflict, Forbidden, ...).
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class RejectedError(ExpectedError):
    """An object can't be created as requested; the message is one line for its owner's status."""


class Kube:
    """Requests to one API server."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> "Kube":
        """The cluster this pod runs in, else the one of KUBECONFIG or ~/.kube/config.

        Raises ApiError when neither configures a cluster.
        """
        settings = Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
            else:
                await config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            text = f"no cluster configured (set KUBECONFIG): {error}"
            raise ApiError(0, "NoCluster", text) from None
        settings.connection_pool_maxsize = 64
        return cls(ApiClient(settings))

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, path: str, **query: str) -> Object:
        """The object or list at `path`."""
        return await self._send_json("GET", path, query)

    async def find(self, path: str) -> Object | None:
        """The object at `path`; None if it does not exist."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_all(self, path: str, **query: str) -> list[Object]:
        """Every item of a collection, page by page."""
        items: list[Object] = []
        query = {"limit": "500", **query}
        while True:
            page = await self.get(path, **query)
            items += page.get("items") or []
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items
            query["continue"] = following

    async def text(self, path: str, **query: str) -> str:
        """The plain text at `path` (logs)."""
        return (await self._send("GET", path, query, None, None)).decode(errors="replace")

    async def create(self, path: str, body: Object) -> Object | None:
        """POST into a collection; None if an object of that name already exists."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        try:
            return await self._send_json("POST", path, query, body)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                return None
            raise

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply; takes over the fields we set from other managers."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._send_json("PATCH", path, query, body, _APPLY)

    async def replace(self, path: str, body: Object) -> Object:
        """PUT; with metadata.resourceVersion, a Conflict if the object has changed since."""
        return await self._send_json("PUT", path, {"fieldManager": FIELD_MANAGER}, body)

    async def delete(self, path: str, options: Object | None = None) -> bool:
        """DELETE; False if it did not exist, or (with preconditions) was another one or changed."""
        try:
            await self._send_json("DELETE", path, {}, options)
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and options):
                return False
            raise
        return True

    async def _send_json(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> Object:
        answer = await self._send(method, path, query, body, content_type)
        parsed: Object = json.loads(answer)
        return parsed

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None,
        content_type: str | None,
    ) -> bytes:
        headers = {"Accept": _JSON if content_type else "*/*"}
        if body is not None and content_type:
            headers["Content-Type"] = content_type
        try:
            request = await self._api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=REQUEST_SECONDS)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ApiError(0, "Unreachable", f"API server: {text}") from error
        if response.status >= 400:
            raise _error(response.status, response.reason or "", data)
        return data


def _error(status: int, phrase: str, data: bytes) -> ApiError:
    """The error of a Status object, or of a proxy's answer that isn't one."""
    try:
        answer = json.loads(data)
        return ApiError(status, answer.get("reason") or phrase, answer.get("message") or phrase)
    except (ValueError, AttributeError):
        return ApiError(status, phrase, f"{status} {phrase}")


def path_of(
    api: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str = ""
) -> str:
    """URL path of a collection or an object; `api` is an apiVersion (v1, apps/v1)."""
    parts = ["apis" if "/" in api else "api", api]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(plural)
    if name is not None:
        parts.append(quote(name, safe=""))
    if sub:
        parts.append(sub)
    return "/" + "/".join(parts)
