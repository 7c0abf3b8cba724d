"""Asks the agents of a run's other nodes about their ranks."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any, Sequence

TIMEOUT = 2.0  # seconds
MAX_ANSWER = 4 * 1024 * 1024
AT_ONCE = 16


def ask_all(peers: Sequence[str]) -> list[Any]:
    """The JSON document that each HOST:PORT serves at /ranks; None: it does not answer."""
    if not peers:
        return []
    from concurrent.futures import ThreadPoolExecutor  # two megabytes, on node 0 only

    with ThreadPoolExecutor(min(AT_ONCE, len(peers))) as pool:
        return list(pool.map(_ask, peers))


def _ask(peer: str) -> Any:
    host, _, port = peer.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=TIMEOUT)  # never through a proxy
    try:
        connection.request("GET", "/ranks")
        return json.loads(connection.getresponse().read(MAX_ANSWER))
    except (OSError, HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()
