"""Decoding in processes of their own: whatever an image does, only its own request fails."""

import io
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests import patience
from tests.patience import until
from tests.support.serving.hostile_web import picture, png_claiming
from trainyard_serving.errors import ApiError
from trainyard_serving.vision.decoders import DecodedImage, DecoderLimits, Decoders
from trainyard_serving.vision.images import BYTES_PER_PIXEL

LIMITS = DecoderLimits(
    processes=1, memory=2**30, seconds=int(patience.SECONDS), max_pixels=50_000_000, max_side=600
)
OUR_WORDS = (
    "the image cannot be read: it is damaged or incomplete",
    "the image is not an image (JPEG, PNG, GIF, WebP, HEIC or AVIF)",
    "the image has ",
    "the image needs more memory than its pixels should",
)
MUTATIONS = 12  # of each format


@contextmanager
def decoders(**changes: Any) -> Iterator[Decoders]:
    pool = Decoders(replace(LIMITS, **changes))
    pool.start()
    try:
        yield pool
    finally:
        pool.stop()


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with decoders() as pool:
        yield pool


def processes(pool: Decoders) -> list[psutil.Process]:
    """Its processes that live and are not decoding."""
    found = [psutil.Process(process._popen.pid) for process in pool._idle]
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


async def refused(pool: Decoders, data: bytes) -> ApiError:
    with pytest.raises(ApiError) as error:
        await pool.decode(data)
    return error.value


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A small picture with some content."""
    image = Image.linear_gradient("L").resize((48, 40))
    image = image.convert("I;16") if mode == "I;16" else image.convert("RGB").convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (48, 40), color) for color in ("red", "green", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


FORMATS = {
    "JPEG": saved("JPEG"),
    "progressive JPEG": saved("JPEG", progressive=True),
    "CMYK JPEG": saved("JPEG", "CMYK"),
    "PNG": saved("PNG", "RGBA"),
    "16-bit PNG": saved("PNG", "I;16"),
    "palette PNG": saved("PNG", "P"),
    "GIF": saved("GIF", "P"),
    "animated GIF": animated("GIF"),
    "WebP": saved("WEBP"),
    "lossless WebP": saved("WEBP", "RGBA", lossless=True),
    "animated WebP": animated("WEBP"),
    "AVIF": saved("AVIF"),
    "AVIF with alpha": saved("AVIF", "RGBA"),
    "HEIC": saved("HEIF"),
    "HEIC with alpha": saved("HEIF", "RGBA"),
}


def mutations(data: bytes, seed: str) -> Iterator[bytes]:
    """Truncated, overwritten, and with sizes and offsets that are too large."""
    chance = random.Random(seed)
    for _ in range(MUTATIONS):
        yield data[: chance.randrange(1, len(data))]
        changed = bytearray(data)
        for _ in range(chance.choice((1, 4, 40))):
            changed[chance.randrange(12, len(data))] = chance.randrange(256)
        yield bytes(changed)
        at = chance.randrange(12, len(data) - 4)
        yield data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


@pytest.mark.parametrize("kind", FORMATS)
async def test_damaged_images_are_refused_in_our_own_words(pool: Decoders, kind: str) -> None:
    image = await pool.decode(FORMATS[kind])
    assert (image.width, image.height) == (48, 40)
    refusals = []
    for data in mutations(FORMATS[kind], kind):
        try:
            assert isinstance(await pool.decode(data), DecodedImage)
        except ApiError as error:
            refusals.append(error)
    assert refusals
    for refusal in refusals:
        assert refusal.status_code in (413, 415, 422)
        assert refusal.detail.startswith(OUR_WORDS), refusal.detail
    assert await pool.decode(FORMATS[kind]) == image


async def test_photos_and_screenshots_are_accepted(pool: Decoders) -> None:
    for kind, size in (("JPEG", (4032, 3024)), ("PNG", (5120, 2880))):
        image = await pool.decode(picture(kind, size))
        assert (image.width, image.height) == size


async def test_pixels_are_bounded_before_they_are_decoded(pool: Decoders) -> None:
    error = await refused(pool, png_claiming(20_000, 20_000))
    assert (error.status_code, error.code) == (413, "too_many_pixels")
    assert error.detail == ("the image has 20000 x 20000 pixels; a PNG may have at most 50000000")


@pytest.mark.parametrize("kind", BYTES_PER_PIXEL)
async def test_the_largest_image_of_a_format_fits_the_memory(kind: str) -> None:
    with decoders(memory=96 * 2**20) as pool:
        error = await refused(pool, png_claiming(20_000, 20_000))
        budget = int(error.detail.split()[-1]) * BYTES_PER_PIXEL["PNG"]
        side = int((budget // BYTES_PER_PIXEL[kind]) ** 0.5)
        out = io.BytesIO()
        options = {"progressive": True} if kind.startswith("progressive") else {}
        mode = "CMYK" if "JPEG" in kind else "RGB" if kind == "GIF" else "RGBA"
        Image.new(mode, (side, side)).save(out, kind.split()[-1], **options)
        assert (await pool.decode(out.getvalue())).width == side


async def test_the_process_has_no_more_memory_than_set() -> None:
    with decoders(memory=2**28) as pool:
        await pool.decode(picture())
        (child,) = processes(pool)
        assert child.rlimit(psutil.RLIMIT_AS) == (2**28, 2**28)
        assert child.environ().keys() <= {"MALLOC_ARENA_MAX", "LC_CTYPE"}
        error = await refused(pool, png_claiming(6500, 6500))  # 42 megapixels take 253 MB
        assert error.code == "too_many_pixels"
        assert await pool.decode(picture())


async def test_an_image_that_takes_too_long_is_refused_and_the_next_one_answered() -> None:
    with decoders(seconds=0) as pool:
        error = await refused(pool, picture("PNG", (3000, 3000)))
        assert (error.status_code, error.code) == (422, "decoding_timeout")
        assert error.detail == "the image takes longer than 0 s to decode"
        assert processes(pool) == []


async def test_a_decoder_that_crashes_costs_its_request_only() -> None:
    with decoders() as pool:
        await pool.decode(picture())
        (child,) = processes(pool)
        child.rlimit(psutil.RLIMIT_CPU, (1, 1))  # it fails to allow itself more
        error = await refused(pool, picture())
        assert error.status_code == 422
        assert error.detail == "the image cannot be read: its decoder failed"
        assert await pool.decode(picture())
        assert processes(pool)[0].pid != child.pid


GOOD = '{"width": 3, "height": 2, "size": 4}'
PYTHON = sys.executable
# A decoder under the control of an image.
HOSTILE = """#!{python} -I
import sys
while line := sys.stdin.buffer.readline():
    sys.stdin.buffer.read(int(line))
    sys.stdout.buffer.write({answer!r} + b"\\n" + b"jpeg")
    sys.stdout.buffer.flush()
"""


def hostile(answer: str, directory: Path, patch: pytest.MonkeyPatch) -> None:
    """Decoders that are started from now on give this answer, and 4 bytes."""
    program = directory / "decoder"
    program.write_text(HOSTILE.format(python=PYTHON, answer=answer.encode()))
    program.chmod(0o755)
    patch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "nonsense",
        "null",
        "[]",
        "{}",
        '{"message": "m"}',
        '{"status": 200, "code": "c", "message": "m", "cause": "c"}',
        '{"status": 422, "code": "c", "message": 7, "cause": "c"}',
        "[" * 4000,
        GOOD.replace("4", "-1"),
        GOOD.replace("4", "4.0"),
        GOOD.replace("4", '"4"'),
        GOOD.replace("4", str(2**40)),
        GOOD.replace("4", str(2**80)),
        GOOD.replace("3", "null"),
    ],
)
async def test_a_decoder_that_answers_nonsense_decodes_no_other_image(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hostile(GOOD, tmp_path, patch)
        with decoders() as pool:
            assert await pool.decode(b"") == DecodedImage(3, 2, "data:image/jpeg;base64,anBlZw==")
        hostile(answer, tmp_path, patch)
        pool = Decoders(LIMITS)
        pool.start()
    (child,) = processes(pool)
    try:
        error = await refused(pool, picture())
        assert error.status_code == 422
        assert error.detail == "the image cannot be read: its decoder failed"
        assert await pool.decode(picture())
        assert not child.is_running()
    finally:
        pool.stop()


async def test_a_jpeg_of_noise_is_not_too_large() -> None:
    noise = Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(64 * 64 * 3))
    out = io.BytesIO()
    noise.save(out, "PNG")
    with decoders(max_side=64) as pool:
        assert (await pool.decode(out.getvalue())).width == 64


async def test_a_decoder_that_has_died_is_replaced_before_the_next_request() -> None:
    with decoders() as pool:
        await pool.decode(picture())
        (child,) = processes(pool)
        child.kill()
        until(lambda: processes(pool) == [])
        assert await pool.decode(picture())
        (other,) = processes(pool)
    assert not other.is_running()
