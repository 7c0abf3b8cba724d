"""Hangs and slow but healthy phases of a script: what is reported, and which rank is named.

    python -m tests.soak.hangs --trials 200 --seed 1 [--at-once 3]

A script (tests/support/scripts/hanging.py) runs under the agent and torchrun, and some trials
follow each other in it: kinds, loop, number of ranks and the rank that something happens to are
drawn from the seed. A hang must name that rank, and be taken back once the script works again; a
phase that only takes long must not be reported.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainyard_agent
from tests.ports import free_port
from trainyard_agent import procfs
from trainyard_agent.hangs import from_wire

HANGS = ("stopped", "deadlock", "disk", "gil-disk", "uneven")
HEALTHY = ("slow-disk", "evaluation", "compilation", "pause", "steps")
SCRIPT = Path(__file__).parents[1] / "support" / "scripts" / "hanging.py"
AGENT = Path(trainyard_agent.__file__).parent / "__main__.py"
AFTER = 6.0
DEADLINE = 300.0


@dataclass(frozen=True)
class Story:
    """What happens in one run of the script: kinds, and the rank that each happens to."""

    loop: str
    ranks: int
    faults: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Result:
    """What became of one trial: named, wrong, missed, kept, quiet, false alarm or failed."""

    trial: str
    outcome: str
    message: str = ""


def draw(seed: int, trials: int) -> Iterator[Story]:
    """Stories with as many trials in all: every kind about equally often."""
    randomly = random.Random(seed)
    kinds: list[str] = []
    while trials:
        ranks, faults = randomly.choice((2, 2, 2, 3, 4)), []
        while trials:
            if not kinds:
                kinds = [*HANGS, *HEALTHY]
                randomly.shuffle(kinds)
            faults.append((kinds.pop(), randomly.randrange(ranks)))
            trials -= 1
            if faults[-1][0] == "uneven":  # there is no way back into the loop
                break
        yield Story(randomly.choice(("ddp", "all-reduce")), ranks, tuple(faults))


class Script:
    """The script of a story under the agent, in a directory of its own."""

    def __init__(self, story: Story, directory: Path, action: str = "warn") -> None:
        self.story = story
        self.directory = directory
        self.port = free_port()
        self.log = directory / "log"
        self._disks: dict[int, int] = {}
        for number, (kind, _) in enumerate(story.faults):
            if kind.endswith("disk"):
                path = directory / f"samples-{number}"
                os.mkfifo(path)
                self._disks[number] = os.open(path, os.O_RDWR)  # opening it then doesn't block
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
        words = [f"{kind}:{rank}" for kind, rank in story.faults]
        variables = {
            "TRAINYARD_RUN": "mine",
            "TRAINYARD_ATTEMPT": "1",
            "TRAINYARD_WORKER_DIR": str(directory),
            "TRAINYARD_REPORT_PORT": str(self.port),
            "TRAINYARD_HANG_SECONDS": str(AFTER),
            "TRAINYARD_HANG_ACTION": action,
            "PET_NPROC_PER_NODE": str(story.ranks),
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": "127.0.0.1:0",
            "OMP_NUM_THREADS": "1",
        }
        torchrun = [sys.executable, "-m", "torch.distributed.run", str(SCRIPT)]
        with self.log.open("wb") as log:
            self.agent = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(AGENT), str(directory), str(lock)),
                    *(*torchrun, story.loop, str(directory), *words),
                ],
                env={**os.environ, **variables},
                pass_fds=[lock],
                stdout=log,
                stderr=log,
            )
        os.close(lock)

    def play(self, number: int) -> Result:
        """One trial, and back to work."""
        kind, rank = self.story.faults[number]
        trial = f"{kind}, {self.story.loop}, rank {rank} of {self.story.ranks}"
        try:
            self.wait((self.directory / f"at-{number}").exists)
            if kind in HEALTHY:
                return self._play_healthy(number, trial)
            pid = self.pid(rank)
            if kind == "stopped":
                os.kill(pid, signal.SIGSTOP)
            self.wait(self.hang)
            message = self.hang()
            if kind == "stopped":
                os.kill(pid, signal.SIGCONT)
            self._release(number)
            if kind != "uneven":
                self.wait(lambda: not self.hang())
        except AssertionError as error:
            return Result(trial, "missed" if kind in HANGS else "failed", str(error))
        right = f": rank {rank} (" in message
        return Result(trial, "named" if right else "wrong", message)

    def _play_healthy(self, number: int, trial: str) -> Result:
        if self.story.faults[number][0] == "slow-disk":
            threading.Thread(target=self._deliver, args=(number,), daemon=True).start()
        messages: list[str] = []

        def done() -> bool:
            messages.append(self.hang())
            return (self.directory / f"done-{number}").exists()

        self.wait(done)
        self._release(number)
        alarm = next(filter(None, messages), "")
        return Result(trial, "false alarm" if alarm else "quiet", alarm)

    def pid(self, rank: int) -> int:
        """The process of a rank."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ranks") as answer:
            return next(each.pid for each in from_wire(json.load(answer)) if each.rank == rank)

    def hang(self) -> str:
        """What the agent reports."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress") as answer:
                report: dict[str, Any] = json.load(answer)
        except OSError:
            return ""
        return str(report.get("hang", ""))

    def wait(self, until: Callable[[], object]) -> None:
        """Wait until something is true. Raises AssertionError if it takes too long, or can't be."""
        deadline = time.monotonic() + DEADLINE
        while not until():
            if time.monotonic() > deadline or self.agent.poll() is not None:
                raise AssertionError(self.log.read_text()[-3000:])
            time.sleep(0.1)

    def close(self) -> None:
        """End every process."""
        for pid in reversed(procfs.tree(self.agent.pid)[1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.wait()
        for descriptor in self._disks.values():
            os.close(descriptor)

    def _release(self, number: int) -> None:
        self._end_file(number)
        (self.directory / f"released-{number}").touch()

    def _deliver(self, number: int) -> None:
        """A few bytes a second, and then the end of the file."""
        end = time.monotonic() + 2.5 * AFTER
        while time.monotonic() < end:
            os.write(self._disks[number], b"x" * 16)
            time.sleep(0.7)
        self._end_file(number)

    def _end_file(self, number: int) -> None:
        """The reader sees the end once nobody else has the file open."""
        if number in self._disks:
            os.close(self._disks.pop(number))


def run(story: Story) -> list[Result]:
    """Every trial of the story."""
    with tempfile.TemporaryDirectory() as folder:
        script = Script(story, Path(folder))
        try:
            return [script.play(number) for number in range(len(story.faults))]
        finally:
            script.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=3)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(options.at_once) as pool:
        for results in pool.map(run, draw(options.seed, options.trials)):
            for result in results:
                outcomes[result.outcome] += 1
                number = outcomes.total()
                line = f"{number}/{options.trials} {result.trial}: {result.outcome}"
                print(f"{line} {result.message}".strip(), flush=True)
    hangs = sum(outcomes[each] for each in ("named", "wrong", "missed"))
    print(
        f"{outcomes['named']} of {hangs} hangs named the right rank, {outcomes['wrong']} another,"
        f" {outcomes['missed']} none; {outcomes['false alarm']} false alarms and"
        f" {outcomes['failed']} failures in {options.trials - hangs} healthy phases"
    )
    bad = outcomes["false alarm"] + outcomes["failed"]
    return 0 if not bad and outcomes["named"] >= 0.95 * hangs else 1


if __name__ == "__main__":
    sys.exit(main())
