"""One kind of object as told by the API server: its list and its watch feed the queue."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from trainyard_api.run import API_VERSION
from trainyard_operator.client import Kube, path_of
from trainyard_operator.observe import Key

Body = Mapping[str, Any]


class Feed:
    """Knows what was last told of each object, and so what is news and whether the watch lives."""

    def __init__(
        self,
        kube: Kube,
        plural: str,
        namespace: str,
        add: Callable[[Key], None],
        seen: Callable[[Key, Body | None], None],
        seen_all: Callable[[Mapping[Any, Body]], None],
    ) -> None:
        """
        namespace: the only one to look after; empty: all.
        add: has an object looked at.
        seen, seen_all: are shown every version of an object (None: it is gone), and the whole list.
        """
        self._kube = kube
        self._path = path_of(API_VERSION, plural, namespace or None)
        self._add = add
        self._seen = seen
        self._seen_all = seen_all
        self._watched: dict[Key, str] = {}  # resourceVersion of each, as the watch told it
        self._wanted: dict[Key, tuple[Any, ...]] = {}  # what a user may change, likewise
        self._listed: dict[Key, str] = {}  # resourceVersion of each, as last listed
        self.heard = time.monotonic()

    async def list(self) -> None:
        """List all objects and have each looked at."""
        items = await self._kube.list_all(self._path)
        self.heard = time.monotonic()
        bodies = {key_of(item): item for item in items}
        self._seen_all(bodies)
        self._listed = {key: item["metadata"]["resourceVersion"] for key, item in bodies.items()}
        for key in bodies:
            self._add(key)

    async def list_again(self) -> Key | None:
        """List; returns an object that proves that the watch has died silently.

        It hasn't changed since the list before, in a version that the watch never told us about.
        """
        before, watched = self._listed, dict(self._watched)
        await self.list()
        for key, version in self._listed.items():
            # A newer version may have been told while the list was under way.
            if version == before.get(key) and version not in (
                watched.get(key),
                self._watched.get(key),
            ):
                return key
        return None

    def changed(self, body: Body, *, deleted: bool) -> None:
        """The watch says that an object was made, changed or deleted."""
        self.heard = time.monotonic()
        key, meta = key_of(body), body["metadata"]
        self._seen(key, None if deleted else body)
        wanted = (meta["uid"], meta.get("generation"), meta.get("deletionTimestamp"))
        # Our own status comes back as an event too: answering it would never end.
        if deleted or wanted != self._wanted.get(key):
            self._add(key)
        if deleted:
            self._watched.pop(key, None)
            self._wanted.pop(key, None)
        else:
            self._watched[key], self._wanted[key] = meta["resourceVersion"], wanted


def key_of(item: Body) -> Key:
    """The key of a stored object."""
    return Key(item["metadata"]["namespace"], item["metadata"]["name"])
