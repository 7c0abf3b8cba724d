"""A small API server over real HTTP: objects, versions, conflicts, selectors. For tests.

It keeps what it is sent, so tests can look into it; `refuse` makes it answer as admission would.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from trainyard_operator.client import Kube

Object = dict[str, Any]


class ApiServer:
    """The state: objects by the path of their URL."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.logs: dict[str, str] = {}
        self._refusals: dict[tuple[str, str], tuple[int, str, str]] = {}
        self._version = 0

    def put(self, path: str, body: Object) -> Object:
        """Store an object as if it had always been there."""
        self._version += 1
        metadata = {
            "name": path.rpartition("/")[2],
            "uid": f"uid-{self._version}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **body.get("metadata", {}),
            "resourceVersion": str(self._version),
        }
        if "/namespaces/" in path:
            metadata["namespace"] = path.split("/namespaces/")[1].split("/")[0]
        self.objects[path] = {**body, "metadata": metadata}
        return self.objects[path]

    def refuse(self, method: str, part: str, status: int, reason: str, message: str) -> None:
        """Answer so to every such request to a path that holds `part`."""
        self._refusals[method, part] = (status, reason, message)

    def accept(self) -> None:
        """Refuse nothing any more."""
        self._refusals.clear()

    def writes(self) -> list[tuple[str, str]]:
        """Requests that changed something, in order."""
        return [request for request in self.requests if request[0] != "GET"]

    async def handle(self, request: web.Request) -> web.Response:
        method, path = request.method, request.path
        self.requests.append((method, path))
        for (refused, part), answer in self._refusals.items():
            if refused == method and part in path:
                return _status(*answer)
        body = json.loads(await request.text() or "{}")
        match method:
            case "GET" if path.endswith("/log"):
                return web.Response(text=self.logs.get(path, ""))
            case "GET" if path in self.objects:
                return web.json_response(self.objects[path])
            case "GET" if path.rpartition("/")[2] in _COLLECTIONS:
                return web.json_response(self._list(path, request.query))
            case "POST":
                name = f"{path}/{body['metadata']['name']}"
                if name in self.objects:
                    return _status(409, "AlreadyExists", f"{name} already exists")
                return web.json_response(self.put(name, body), status=201)
            case "PUT":
                return self._replace(path, body)
            case "PATCH":
                kept = {"uid": self.objects.get(path, {}).get("metadata", {}).get("uid", "new")}
                return web.json_response(self.put(path, _with_metadata(body, kept)))
            case "DELETE" if path in self.objects:
                found = self.objects[path]["metadata"]
                for name, value in (body.get("preconditions") or {}).items():
                    if value != found[name]:
                        return _status(409, "Conflict", f"{name} differs")
                return web.json_response(self.objects.pop(path))
            case _:
                return _status(404, "NotFound", f"{path} not found")

    def _replace(self, path: str, body: Object) -> web.Response:
        status_only = path.endswith("/status")
        path = path.removesuffix("/status")
        old = self.objects.get(path)
        if old is None:
            return _status(404, "NotFound", f"{path} not found")
        if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified")
        new = {**old, "status": body["status"]} if status_only else body
        return web.json_response(self.put(path, new))

    def _list(self, path: str, query: Any) -> Object:
        collection = path.rpartition("/")[2]
        prefix = path.removesuffix(collection)
        found = [
            item
            for name, item in self.objects.items()
            if name.startswith(prefix)
            and name.rpartition("/")[0].endswith(f"/{collection}")
            and _selected(item, query)
        ]
        start = int(query.get("continue") or 0)
        end = start + int(query.get("limit") or len(found) or 1)
        rest = {"continue": str(end)} if end < len(found) else {}
        return {"metadata": rest, "items": found[start:end]}


_COLLECTIONS = ("pods", "nodes", "events", "trainingruns", "scalingstudies", "services", "leases")


def _with_metadata(body: Object, more: Object) -> Object:
    return {**body, "metadata": {**body["metadata"], **more}}


def _selected(item: Object, query: Any) -> bool:
    labels = item["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        found: Any = item
        for step in key.split("."):
            found = found.get(step, {})
        if found != value:
            return False
    return True


def _status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=code)


@asynccontextmanager
async def api_server(state: ApiServer | None = None) -> AsyncIterator[tuple[ApiServer, Kube]]:
    """A running server and a client of it."""
    state = state or ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", state.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    kube = Kube(ApiClient(configuration))
    try:
        yield state, kube
    finally:
        await kube.close()
        await runner.cleanup()
