"""docs/recipes.md says what the code says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs/recipes.py")]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs/recipes.md").read_text() == page, "run `make recipes`"
