"""Chooses torch's build for `make`: the CPU build if there is no GPU and its index answers.

    python -m dev.torch_backend [cpu|pypi]     prints uv's option, and on stderr what is downloaded

The package index has only the CUDA build for Linux; the CPU build is on PyTorch's own index.
"""

import platform
import subprocess
import sys
from pathlib import Path

CPU_INDEX = ""
PROBE_SECONDS = 2.0
CUDA_SIZE = "5 GB on disk"

# In a process of its own, because a name lookup can't be given a time limit.
_PROBE = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=60).close()"


def choose(requested: str, *, has_gpu: bool, index: str = CPU_INDEX) -> tuple[list[str], str]:
    """(uv's options, a line that says why). `requested`: cpu, pypi, or empty to find out."""
    if requested == "cpu":
        return ["--torch-backend=cpu"], f"torch: CPU build from {index}, as requested"
    if requested == "pypi":
        return [], f"torch: the package index's build, as requested (Linux: CUDA, {CUDA_SIZE})"
    if requested:
        raise SystemExit(f"TORCH_INDEX={requested}: use cpu or pypi, or leave it out")
    if platform.system() != "Linux":
        return [], "torch: the package index's build for this system, without CUDA"
    if has_gpu:
        return [], f"torch: CUDA build, as this machine has an NVIDIA GPU ({CUDA_SIZE})"
    if is_reachable(index):
        return ["--torch-backend=cpu"], f"torch: CPU build from {index}, as there is no NVIDIA GPU"
    return [], (
        f"torch: WARNING: no NVIDIA GPU here, but {index} does not answer within"
        f" {PROBE_SECONDS:g} s: installing the CUDA build from the package index ({CUDA_SIZE})"
    )


def is_reachable(index: str) -> bool:
    """Whether the index answers a request for torch in time."""
    command = [sys.executable, "-c", _PROBE, f"{index}/torch/"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


if __name__ == "__main__":
    options, reason = choose("".join(sys.argv[1:]), has_gpu=any(Path("/dev").glob("nvidia[0-9]*")))
    print(reason, file=sys.stderr)
    print(*options)
