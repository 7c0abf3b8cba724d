"""A script in which things happen to ranks: hanging.py LOOP DIRECTORY KIND:RANK...

It knows nothing of Trainyard. LOOP is ddp or all-reduce. The faults happen one after the other,
each a few steps after the file `released-N` of the one before is in DIRECTORY; the rank that one
happens to writes `at-N` before, and `done-N` after it.

stopped: nothing; the test stops the rank.
deadlock: the rank waits for a lock that it holds itself.
disk: it reads a file whose disk does not answer.
gil-disk: the same in native code that holds Python's global lock meanwhile.
uneven: it has less data, and leaves the loop before the others. This one is the last.
slow-disk: it reads a file that arrives a little at a time.
evaluation: it evaluates for long, while the others wait.
compilation: a compiler that it has started takes long.
pause: it polls for a file every few seconds.
steps: for a while, each of its steps takes two seconds.
"""

import ctypes
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

loop, directory = sys.argv[1], Path(sys.argv[2])
faults = [(kind, int(rank)) for kind, rank in (word.split(":") for word in sys.argv[3:])]
LONG = 15.0
STEPS_BETWEEN = 5


def released(number: int) -> Path:
    return directory / f"released-{number}"


def deadlock(number: int) -> None:
    """Ends only because another thread, which a real script has not, releases the lock."""
    lock = threading.Lock()
    lock.acquire()

    def release() -> None:
        while not released(number).exists():
            time.sleep(0.2)
        lock.release()

    threading.Thread(target=release).start()
    lock.acquire()


def read_sample(number: int) -> None:
    with open(directory / f"samples-{number}", "rb", buffering=0) as file:
        while file.read(64):
            pass


def read_with_the_gil(number: int) -> None:
    with open(directory / f"samples-{number}", "rb", buffering=0) as file:
        ctypes.PyDLL(None).read(file.fileno(), ctypes.create_string_buffer(64), 64)


def evaluate(model: nn.Module) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        model(torch.ones(64, 16))


def compile_kernels() -> None:
    program = f"import time\nend = time.monotonic() + {LONG}\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", program], check=True)


def wait_for_file() -> None:
    polls = 0
    while polls < LONG / 1.5:
        polls += 1
        time.sleep(1.5)


class Faults:
    """The faults of this rank; `happen` is called before every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.number = 0
        self.steps = 0

    def happen(self) -> bool:
        """Returns whether the rank leaves the loop."""
        while self.number < len(faults) and faults[self.number][1] != dist.get_rank():
            self.number += 1
        if self.number == len(faults):
            return False
        if self.number and not released(self.number - 1).exists():
            return False
        self.steps += 1
        if self.steps <= STEPS_BETWEEN:
            return False
        kind, number = faults[self.number][0], self.number
        if kind == "steps" and self.steps <= STEPS_BETWEEN + LONG / 2:
            (directory / f"at-{number}").touch()
            time.sleep(2)
            return False
        (directory / f"at-{number}").touch()
        self.number, self.steps = number + 1, 0
        if kind == "uneven":
            return True
        if kind == "deadlock":
            deadlock(number)
        elif kind in ("disk", "slow-disk"):
            read_sample(number)
        elif kind == "gil-disk":
            read_with_the_gil(number)
        elif kind == "evaluation":
            evaluate(self.model)
        elif kind == "compilation":
            compile_kernels()
        elif kind == "pause":
            wait_for_file()
        (directory / f"done-{number}").touch()
        return False


def train() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    if loop == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    happening = Faults(module)
    while True:
        if happening.happen():
            break
        loss = model(torch.randn(8, 16)).square().mean()
        loss.backward()
        if loop == "all-reduce":
            for parameter in model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.02)
    dist.barrier()


torch.set_num_threads(1)
dist.init_process_group("gloo")
train()
