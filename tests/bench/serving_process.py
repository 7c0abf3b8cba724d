"""A server of its own process for benchmarks, and tiny models for `generate`."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trainyard_trainer.data.tokenizers import CharTokenizer
from trainyard_trainer.models.gpt import GPT, GPTShape, write_gpt2
from trainyard_trainer.recipes.golden import write_golden_text

TEXT = "to be, or not to be: that is the question"


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    url: str
    pid: int

    def rss_mib(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def serving(app: str, *flags: str) -> Iterator[Server]:
    """`trainyard_serving APP` with `flags`, or the dashboard, on one thread."""
    program = ["trainyard_dashboard"] if app == "dashboard" else ["trainyard_serving", app]
    command = [sys.executable, "-m", *program, "--port=0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        yield Server(line.split()[-1], process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_ready(url: str, seconds: float = 120) -> None:
    """Wait until the model is loaded."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready") as answer:
            if answer.status == 200:
                return
        assert time.monotonic() < deadline, f"{url} never became ready"
        time.sleep(0.1)


def export_tiny(directory: Path, seed: int, n_layer: int = 1, n_embd: int = 16) -> Path:
    """A character GPT with random weights and a golden request, as char-gpt exports one."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    tokenizer = CharTokenizer.of(TEXT)
    shape = GPTShape(tokenizer.vocab_size, 64, n_layer, n_head=2, n_embd=n_embd)
    model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    write_gpt2(model.state_dict(), shape, directory)
    tokenizer.save(directory, shape.block_size)
    prompt = TEXT[:8]
    ids = tokenizer.encode(prompt).tolist()
    write_golden_text(directory, prompt, ids, shape.block_size, model.train(False))
    return directory
