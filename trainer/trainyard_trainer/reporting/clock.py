"""How long this process has been there, its imports included."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def since_start() -> float:
    """Seconds since the process was started; elsewhere than on Linux, since this import."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED
