"""A few processes that decode images: one that fails costs its request, and is replaced."""

import base64
import logging
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainyard_serving.errors import ApiError, one_line

log = logging.getLogger(__name__)

MAX_LINE = 4096
# Of the JPEG, for each pixel: a JPEG of three full planes has 3 bytes of samples, and noise takes
# less than twice that.
MAX_BYTES_PER_PIXEL = 6
HEADER_BYTES = 2**16
# One arena: glibc would reserve 64 MiB of the limited address space for each thread.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class DecoderLimits:
    """Limits on decoding.

    Attributes:
        processes: images decoded at a time.
        memory: of a process, in bytes of address space.
        seconds: for an image.
        max_pixels: of an image.
        max_side: longest side of the result, in pixels.
    """

    processes: int
    memory: int
    seconds: int
    max_pixels: int
    max_side: int


@dataclass(frozen=True)
class DecodedImage:
    """An image that may be sent to a model.

    Attributes:
        width, height: of the original, upright, in pixels.
        data_uri: its pixels, perhaps fewer of them, as a JPEG.
    """

    width: int
    height: int
    data_uri: str


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Refusal(_Strict):
    status: int = Field(ge=400, le=499)
    code: str
    message: str
    cause: str


class _Success(_Strict):
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    size: int = Field(ge=1)


ANSWER: TypeAdapter[_Refusal | _Success] = TypeAdapter(_Refusal | _Success)


class Decoders:
    """Decodes images in at most `limits.processes` processes."""

    def __init__(self, limits: DecoderLimits) -> None:
        self._limits = limits
        self._free = CapacityLimiter(limits.processes)
        self._idle: deque[_Process] = deque()
        self._stopped = False

    @property
    def alive(self) -> bool:
        return True

    def start(self) -> None:
        for _ in range(self._limits.processes):
            self._idle.append(_Process(self._limits))

    def stop(self) -> None:
        self._stopped = True
        while self._idle:
            self._idle.pop().end()

    async def decode(self, data: bytes) -> DecodedImage:
        """The first frame of an image, upright and scaled down.

        Raises ApiError (413, 415, 422).
        """
        return await run_sync(self._decode, data, limiter=self._free)

    def _decode(self, data: bytes) -> DecodedImage:
        process = self._take()
        try:
            return process.decode(data)
        finally:
            if self._stopped or not process.usable:
                process.end()
            else:
                self._idle.append(process)

    def _take(self) -> "_Process":
        while self._idle:
            process = self._idle.pop()
            if process.usable:
                return process
            process.end()
        return _Process(self._limits)


class _Process:
    """A process of decoder.py."""

    def __init__(self, limits: DecoderLimits) -> None:
        self._seconds = limits.seconds
        self._max_size = HEADER_BYTES + MAX_BYTES_PER_PIXEL * limits.max_side**2
        self._late = False
        numbers = (limits.max_pixels, limits.max_side, limits.memory, limits.seconds)
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-m", "trainyard_serving.vision.decoder", *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
        )

    @property
    def usable(self) -> bool:
        """Whether it can decode a further image."""
        return not self._late and self._popen.poll() is None

    def decode(self, data: bytes) -> DecodedImage:
        """Raises ApiError."""
        timer = threading.Timer(self._seconds, self._end_late)
        timer.start()
        try:
            answer, jpeg = self._ask(data)
        except Exception:  # whatever an image has made of the process, it decodes no other one
            self._popen.kill()
            raise self._ended() from None
        finally:
            timer.cancel()
        if isinstance(answer, _Refusal):
            log.info("an image is refused: %s (%s)", answer.message, one_line(answer.cause))
            raise refuse(answer.status, answer.code, answer.message)
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        return DecodedImage(answer.width, answer.height, uri)

    def end(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def _ask(self, data: bytes) -> tuple[_Refusal | _Success, bytes]:
        """The answer and the JPEG. Raises an exception if it has ended, or answers nonsense."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(b"%d\n" % len(data))
        self._popen.stdin.write(data)
        self._popen.stdin.flush()
        answer = ANSWER.validate_json(self._popen.stdout.readline(MAX_LINE))
        if isinstance(answer, _Refusal):
            return answer, b""
        if answer.size > self._max_size:
            raise ValueError(f"a JPEG of {answer.size} bytes")
        jpeg = self._popen.stdout.read(answer.size)
        if len(jpeg) < answer.size:
            raise ValueError("the process has ended")
        return answer, jpeg

    def _end_late(self) -> None:
        self._late = True
        self._popen.kill()

    def _ended(self) -> ApiError:
        """Why the process has no answer."""
        status = self._popen.wait()
        if self._late or status == -signal.SIGXCPU:
            return refuse(422, "decoding_timeout", f"takes longer than {self._seconds} s to decode")
        log.warning("a decoder's process ended with status %d", status)
        return refuse(422, "broken_image", "cannot be read: its decoder failed")


def refuse(status: int, code: str, message: str) -> ApiError:
    """An error about an image."""
    return ApiError(status, f"the image {message}", code, "image")
