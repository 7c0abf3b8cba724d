"""Run by `helm test`: the operator answers through its Service and exports its metrics."""

import os
import sys
import time
import urllib.request

DEADLINE = time.monotonic() + 240  # `helm test` itself waits 300 s


def get(path: str) -> str:
    with urllib.request.urlopen(f"http://{os.environ['HOST']}:8080{path}", timeout=60) as answer:
        return answer.read().decode()


while True:
    try:
        print("healthz:", get("/healthz").strip())
        break
    except OSError as error:  # not reachable yet, or a status that says unhealthy
        if time.monotonic() > DEADLINE:
            sys.exit(f"/healthz: {error}")
        time.sleep(1)
assert "trainyard_operator_leader" in get("/metrics"), "/metrics lacks the operator's metrics"
