"""`make` installs torch's CPU build where there is no GPU and its index answers in time."""

import subprocess
import sys
import time

import pytest

from dev.torch_backend import CPU_OPTION, PROBE, PROBE_SECONDS, choose

ANSWERS = (sys.executable, "-c", "pass")
REFUSES = (sys.executable, "-c", "raise SystemExit(2)")
HANGS = (sys.executable, "-c", "import time; time.sleep(600)")


def test_a_request_decides() -> None:
    assert choose("cpu", has_gpu=True, probe=REFUSES)[0] == [CPU_OPTION]
    assert choose("pypi", has_gpu=False, probe=ANSWERS)[0] == []
    with pytest.raises(SystemExit, match="TORCH_INDEX=gpu: use cpu or pypi"):
        choose("gpu", has_gpu=False)


def test_a_gpu_gets_the_cuda_build() -> None:
    options, reason = choose("", has_gpu=True, probe=ANSWERS)
    assert (options, "has an NVIDIA GPU" in reason) == ([], True)


def test_an_index_that_answers_gives_the_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dev.torch_backend.PROBE_SECONDS", 60.0)  # the test's machine may be slow
    assert choose("", has_gpu=False, probe=ANSWERS)[0] == [CPU_OPTION]
    options, reason = choose("", has_gpu=False, probe=REFUSES)
    assert (options, "WARNING: no NVIDIA GPU here" in reason) == ([], True)


def test_an_index_that_does_not_answer_is_skipped_with_a_warning() -> None:
    before = time.monotonic()
    options, reason = choose("", has_gpu=False, probe=HANGS)
    assert options == []
    assert "PyTorch's CPU index does not answer within" in reason
    assert time.monotonic() - before < PROBE_SECONDS + 30


def test_the_probe_is_a_command_that_this_uv_has() -> None:
    """uv exits with 2 for an option that it doesn't know; --help is answered without a network."""
    done = subprocess.run([*PROBE, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
