"""What the machine did beside a benchmark."""

from pathlib import Path


class Stolen:
    """How much of the CPU time that was wanted here the host of this virtual machine took, since
    this object was made."""

    def __init__(self) -> None:
        self._stolen, self._wanted = _ticks()

    def share(self) -> float:
        """Between 0 and 1."""
        stolen, wanted = _ticks()
        return (stolen - self._stolen) / max(1, wanted - self._wanted)


def _ticks() -> tuple[int, int]:
    """Stolen (proc(5): given to others while there was work here), and all that were not idle."""
    lines = Path("/proc/stat").read_text().splitlines()
    user, nice, system, _, _, irq, softirq, stolen = map(int, lines[0].split()[1:9])
    return stolen, user + nice + system + irq + softirq + stolen
