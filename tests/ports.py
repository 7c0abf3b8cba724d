"""TCP ports for the servers of tests and benchmarks."""

import socket

_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on, and never the same one twice."""
    while True:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port
