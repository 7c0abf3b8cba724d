"""`make demo`, the first command of the README."""

import os
import subprocess
import sys
from pathlib import Path

from tests import patience
from trainyard_local.store import HOME_ENV

ROOT = Path(__file__).parents[3]


def demo(home: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=ROOT,
        env=os.environ | {HOME_ENV: str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience.SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_demo_trains_and_serves_and_a_second_call_reuses_both(tmp_path: Path) -> None:
    first = demo(tmp_path)
    assert "quickstart succeeded: finished in" in first
    _, _, answered = first.partition("trainyard serve quickstart --port 0 --prompt def")
    assert "def " in answered
    second = demo(tmp_path)
    assert "quickstart has already succeeded" in second
    assert "--prompt def" in second
    assert (tmp_path / "runs" / "quickstart" / "logs").is_dir()
