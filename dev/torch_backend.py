"""Chooses torch's build for `make`: the CPU build if there is no GPU and its index answers.

    python -m dev.torch_backend [cpu|pypi]     prints uv's option, and on stderr what is downloaded

PyPI has only the CUDA build for Linux; the CPU build is on PyTorch's own index, which uv knows.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CPU_OPTION = "--torch-backend=cpu"
PROBE_SECONDS = 3.0
CUDA_SIZE = "5 GB on disk"
# Resolves torch from PyTorch's CPU index and installs nothing.
PROBE = (
    str(Path(sys.executable).with_name("uv")),
    *("pip", "install", "--quiet", "--dry-run", "--reinstall", "--no-deps", CPU_OPTION, "torch"),
)


def choose(requested: str, *, has_gpu: bool, probe: Sequence[str] = PROBE) -> tuple[list[str], str]:
    """(uv's options, a line that says why). `requested`: cpu, pypi, or empty to find out."""
    if requested == "cpu":
        return [CPU_OPTION], "torch: CPU build from PyTorch's index, as requested"
    if requested == "pypi":
        return [], f"torch: PyPI's build, as requested (Linux: CUDA, {CUDA_SIZE})"
    if requested:
        raise SystemExit(f"TORCH_INDEX={requested}: use cpu or pypi, or leave it out")
    if platform.system() != "Linux":
        return [], "torch: PyPI's build for this system, without CUDA"
    if has_gpu:
        return [], f"torch: CUDA build, as this machine has an NVIDIA GPU ({CUDA_SIZE})"
    if succeeds(probe):
        return [CPU_OPTION], "torch: CPU build from PyTorch's index, as there is no NVIDIA GPU"
    return [], (
        "torch: WARNING: no NVIDIA GPU here, but PyTorch's CPU index does not answer within"
        f" {PROBE_SECONDS:g} s: installing PyPI's CUDA build ({CUDA_SIZE})"
    )


def succeeds(command: Sequence[str]) -> bool:
    """Whether the command succeeds in time."""
    env = {**os.environ, "UV_HTTP_RETRIES": "0"}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    options, reason = choose("".join(sys.argv[1:]), has_gpu=any(Path("/dev").glob("nvidia[0-9]*")))
    print(reason, file=sys.stderr)
    print(*options)
