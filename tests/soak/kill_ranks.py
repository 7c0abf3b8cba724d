"""Kills ranks of real local runs at random moments; the status must name SIGKILL and the rank.

    python -m tests.soak.kill_ranks --kills 60 --seed 1

`trainyard run` trains a small model with real torchrun, on one or two nodes. In each attempt a rank
drawn from the seed gets SIGKILL at a moment drawn from it: while it imports PyTorch, joins, loads,
trains, evaluates, saves or exports. What the attempt's record says must name the signal and the
rank; the next attempt then resumes, until one is over before its moment comes.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

from tests.patience import until
from tests.soak.families import text
from tests.soak.sequences import CONFIG
from tests.support.local.box import Box
from tests.support.local.ranks import ranks_of

STEPS = 150
RANKS = 2
SHAPES = ({"numNodes": 1, "numProcPerNode": RANKS}, {"numNodes": RANKS, "numProcPerNode": 1})


class UnnamedError(AssertionError):
    """A kill that the status does not name, or a run that failed by itself."""


class Killer:
    """Runs, in a home of their own, that lose a rank in every attempt."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        """First trains one that nothing happens to: moments are drawn from its length."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "corpus.txt").write_text(text())
        self.box = Box(folder)
        self.rng = rng
        self.seconds = self._measure()

    def kill_until_it_ends(self, number: int) -> Iterator[str]:
        """One run; yields a line for each rank that was killed. Raises UnnamedError."""
        name, shape = f"run-{number}", SHAPES[number % len(SHAPES)]
        command, attempt = self._begin(name, shape), 1
        while (killed := self._kill_one(name, attempt, command)) is not None:
            rank, moment = killed
            record = self._record_of(name, attempt, command)
            if record.get("outcome") == "Succeeded":  # it was past everything that can fail
                break
            node = rank // shape["numProcPerNode"]
            wanted = ("Signal", f"{name}-{attempt}-{node}: rank {rank}: killed by SIGKILL")
            if (record.get("reason"), record.get("message")) != wanted:
                raise UnnamedError(
                    f"rank {rank} killed after {moment:.1f} s is reported as {record}"
                )
            yield f"{name}, attempt {attempt}: rank {rank} after {moment:.1f} s"
            if self.box.status(name)["phase"] == "Failed":  # the same thing at the same step again
                self.box.end(command)
                command = self.box.start("retry", name)
            attempt += 1
        code, output = self.box.end(command)
        if code:
            raise UnnamedError(f"{name} failed by itself: {output}")

    def _measure(self) -> float:
        """Seconds that the ranks of an attempt exist."""
        command = self._begin("measure", SHAPES[0])
        self._ranks_exist("measure", 1, command)
        began = time.monotonic()
        until(lambda: not ranks_of(self.box.run_dir("measure")), "its ranks end")
        seconds = time.monotonic() - began
        code, output = self.box.end(command)
        if code:
            raise UnnamedError(f"it failed by itself: {output}")
        return seconds

    def _begin(self, name: str, shape: dict[str, int]) -> "Popen[str]":
        spec: dict[str, Any] = {
            "recipe": "char-gpt",
            "config": CONFIG | {"corpus": "corpus.txt", "max_steps": STEPS},
            "checkpoint": {"everySteps": 10},
            "maxRestarts": 1000,
        }
        return self.box.start("run", self.box.manifest(name, **spec, **shape))

    def _kill_one(self, name: str, attempt: int, command: "Popen[str]") -> tuple[int, float] | None:
        """Kill a rank, if the attempt lasts until the moment comes: (rank, seconds)."""
        rank, moment = self.rng.randrange(RANKS), self.rng.uniform(0, self.seconds)
        self._ranks_exist(name, attempt, command)
        time.sleep(moment)
        pid = ranks_of(self.box.run_dir(name), attempt).get(rank)
        if pid is None:
            return None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return rank, moment

    def _ranks_exist(self, name: str, attempt: int, command: "Popen[str]") -> None:
        run = self.box.run_dir(name)
        until(lambda: command.poll() is not None or len(ranks_of(run, attempt)) == RANKS, "ranks")

    def _record_of(self, name: str, attempt: int, command: "Popen[str]") -> dict[str, Any]:
        """The record of an attempt, once it has ended."""
        until(lambda: command.poll() is not None or self._record(name, attempt), "it ends")
        return self._record(name, attempt)

    def _record(self, name: str, attempt: int) -> dict[str, Any]:
        """The record of an attempt that has ended; empty before."""
        for record in self.box.status(name)["attempts"]:
            if record["number"] == attempt and "endTime" in record:
                return dict(record)
        return {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.kill_ranks")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trainyard-kill-ranks-"))
    began = time.monotonic()
    killer = Killer(folder, random.Random(options.seed))
    kills = named = number = 0
    try:
        while kills < options.kills:
            try:
                for line in killer.kill_until_it_ends(number):
                    kills, named = kills + 1, named + 1
                    print(f"kill {kills:>3}  {line}", flush=True)
                    if kills == options.kills:
                        break
            except UnnamedError as error:
                kills += 1
                print(f"UNNAMED  {error}", flush=True)
            number += 1
    finally:
        killer.box.close()
    seconds = time.monotonic() - began
    print(f"{kills} kills, {named} named ({seconds:.0f} s, seed {options.seed})")
    if named < kills:
        print(f"what they left: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
