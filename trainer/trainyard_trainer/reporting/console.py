"""Console output of rank 0: plain text, styled only on a terminal."""

import sys


class Console:
    """Prints on rank 0 only."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._styled = enabled and sys.stdout.isatty()

    def info(self, text: str) -> None:
        """Print a line."""
        if self._enabled:
            # One write: a signal must not come between the text and the end of its line.
            print(f"{text}\n", end="", flush=True)

    def warn(self, text: str) -> None:
        """Print a warning on stderr: something failed, but the run continues."""
        if self._enabled:
            print(f"warning: {text}\n", end="", file=sys.stderr, flush=True)

    def step(
        self, step: int, total: int, loss: float, lr: float, rate: float, unit: str, eta: float
    ) -> None:
        """`step  120/600  loss 2.1034  lr 1.0e-03  21,034 tokens/s  ETA 0:42`"""
        head = f"step {step:>{len(str(total))}}/{total}"
        tail = f"lr {lr:.1e}  {rate:,.0f} {unit}/s  ETA {clock(eta)}"
        self.info(f"{head}  {self._bold(f'loss {loss:.4f}')}  {self._dim(tail)}")

    def sample(self, step: int, text: str) -> None:
        """Print a sample of generated text, marked so that it differs from the trainer's lines."""
        body = "\n".join(f"  | {line}" for line in text.strip("\n").splitlines())
        self.info(f"sample at step {step}:\n{self._dim(body)}")

    def _bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self._styled else text

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self._styled else text


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:07:12."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
