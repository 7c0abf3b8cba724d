"""The program of a decoder's process: images on standard input, JPEGs on standard output.

    python -m trainyard_serving.vision.decoder MAX_PIXELS MAX_SIDE MEMORY SECONDS

A request is a line with the size, and the image. The answer is a line of JSON, and the JPEG if the
line has its `size`. The process has no secrets (its environment is empty), and limits itself
before it reads anything: a fault of a decoder costs one request, and no more memory or CPU time
than set here.
"""

import json
import os
import resource
import sys
import time
from typing import Any, BinaryIO

from trainyard_serving.vision.images import Limits, RefusedImageError, prepare

NICENESS = 5  # the event loop comes first


def main() -> None:
    """Serve until standard input ends, which it also does when the server dies."""
    max_pixels, max_side, memory, seconds = map(int, sys.argv[1:])
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not become an answer
    limits = Limits(max_pixels, max_side, memory - _confine(memory))
    while line := requests.readline():
        data = requests.read(int(line))
        _allow_cpu_time(seconds)
        _answer(data, limits, answers)
        answers.flush()


def _confine(memory: int) -> int:
    """Limit the process; returns the bytes of its address space that are in use already."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "linux":  # macOS refuses this limit
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _allow_cpu_time(seconds: int) -> None:
    """The system ends the process when the next image has taken that much CPU time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, hard))


def _answer(data: bytes, limits: Limits, answers: BinaryIO) -> None:
    jpeg = b""
    try:
        image = prepare(data, limits)
    except RefusedImageError as error:
        line: dict[str, Any] = {
            "status": error.status,
            "code": error.code,
            "message": error.message,
            "cause": f"{type(error.__cause__).__name__}: {error.__cause__}"[:300],
        }
    else:
        jpeg = image.jpeg
        line = {"width": image.width, "height": image.height, "size": len(jpeg)}
    answers.write(json.dumps(line).encode() + b"\n" + jpeg)


if __name__ == "__main__":
    main()
