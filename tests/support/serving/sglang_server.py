"""The stand-in of SGLang as a server of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests import patience
from tests.support.serving.servers import running
from tests.support.serving.sglang_stand_in import StandIn
from trainyard_serving import sglang

# On a busy machine the stand-in may answer later than a real SGLang would.
sglang.PROBE_SECONDS = patience.SECONDS


@contextmanager
def stand_in(**settings: Any) -> Iterator[StandIn]:
    """A stand-in that listens on 127.0.0.1; its `url` says where."""
    server = StandIn(**settings)
    with running(server.app()) as client:
        server.url = str(client.base_url)
        yield server
