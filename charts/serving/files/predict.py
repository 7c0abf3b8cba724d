"""What `helm test` runs: one completion through the Service, from the model that /health names."""

import http.client
import json
import os
import re
import sys
import time

DEADLINE = time.monotonic() + 120


def ask() -> str:
    """The one line to print when the server answers rightly; raises what went wrong."""
    # One connection, so that every answer comes from the same pod.
    connection = http.client.HTTPConnection(os.environ["HOST"], int(os.environ["PORT"]), timeout=60)
    connection.request("GET", "/ready")
    response = connection.getresponse()
    ready = json.loads(response.read())
    if response.status != 200:
        raise ConnectionError(ready["reason"])
    body = {"prompt": os.environ["PROMPT"], "max_tokens": 32, "seed": 0}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, f"{response.status}: {answer['error']['message']}"
    digest = response.headers["x-trainyard-digest"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest), f"not a digest: {digest}"
    assert digest == ready["digest"], f"answered by {digest}, ready with {ready['digest']}"
    text = answer["choices"][0]["text"]
    assert text, "the completion is empty"
    assert ready["run"] == os.environ["RUN"], f"the model is of run {ready['run']}"
    return f"step {ready['step']} {digest} answered {text!r}"


while True:
    try:
        print(ask())
        break
    except OSError as error:  # not reachable or not ready yet
        if time.monotonic() > DEADLINE:
            sys.exit(f"no answer: {error}")
        time.sleep(1)
