"""Disturbs runs in random ways, repairs them, and compares the end with an undisturbed run's.

    python -m tests.soak.sequences --sequences 50 --seed 1

Each sequence trains one small model with `trainyard run` and real torchrun, and meets operations
drawn from the seed: a rank killed, the driver killed, everything killed at once, a worker
preempted, a setting edited, one edited that must not be, the data broken and repaired, a retry, the
run deleted with its data kept and created again, a branch. It must end with bitwise the same
weights, optimizer and random states as the run that nothing happened to; what is refused on the way
must name what to do, and doing it must work. No checkpoint may be lost.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.soak.families import text
from tests.support.local.box import Box
from tests.support.local.ranks import ranks_of
from tests.support.trainer.checkpoint_tensors import digests
from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_storage.checkpoints import newest_valid

STEPS = 500
OPERATIONS = (3, 6)  # of one sequence
CONFIG: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 8,
    "block_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "dropout": 0.1,
    "learning_rate": 1e-2,
    "eval_steps": 100,
    "eval_batches": 2,
    "log_steps": 5,
    "sample_tokens": 20,
}


class DiffersError(AssertionError):
    """A sequence did not end as the undisturbed run does."""


class Sequence:
    """One run and what happens to it, in a home of its own."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        folder.mkdir(parents=True)
        self.box = Box(folder)
        self.rng = rng
        self.name = "run"
        self.corpus = folder / "corpus.txt"
        self.corpus.write_text(text())
        self.spec: dict[str, Any] = {
            "recipe": "char-gpt",
            "config": CONFIG | {"corpus": str(self.corpus)},
            "numProcPerNode": 2,
            "seed": 7,
            "maxRestarts": rng.choice([0, 3]),
            "checkpoint": {"everySteps": 20, "keepLast": 3},
        }
        self.newest = 0
        self.command: subprocess.Popen[str] | None = None

    # What is so.

    @property
    def data(self) -> Path:
        return self.box.run_dir(self.name) / "data"

    def logged(self) -> int:
        """The newest step in metrics.jsonl."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(
                json.loads((self.data / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            )
        return 0

    def active(self) -> bool:
        return self.command is not None and self.command.poll() is None

    def ranks(self) -> list[int]:
        """The process ids of the ranks."""
        return [*ranks_of(self.box.run_dir(self.name)).values()]

    def check_nothing_lost(self) -> None:
        """The newest checkpoint that verifies must never be an older one."""
        _, manifest, _ = newest_valid(self.data / CHECKPOINTS)
        step = manifest.step if manifest else 0
        if step < self.newest:
            raise DiffersError(f"the newest checkpoint was of step {self.newest}, now {step}")
        self.newest = step

    # What a user does.

    def begin(self, *, retry: bool = False) -> None:
        manifest = self.box.manifest(self.name, **self.spec)
        self.command = self.box.start(*(["retry", self.name] if retry else ["run", manifest]))
        run = self.box.run_dir(self.name) / "run.json"
        until(lambda: run.is_file() or not self.active(), "the run exists")

    def end(self) -> tuple[int, str]:
        assert self.command is not None
        code, output = self.box.end(self.command)
        self.command = None
        return code, output

    def until_step(self, step: int) -> None:
        """Wait until the run has come so far, or stopped."""
        until(lambda: not self.active() or self.logged() >= step, f"step {step}")

    def stop(self) -> None:
        """Suspend the run, as before an edit; one that has ended stays so."""
        code, output = self.box.cli("suspend", self.name)
        if code != 0:
            raise DiffersError(f"suspend: {output}")
        if self.command is not None:
            self.end()

    def refused(self, *words: str) -> None:
        """Start the run: it must fail with one line that has these words, unless it had ended."""
        self.begin()
        code, output = self.end()
        if code == 0 and "already succeeded" in output:
            return
        missing = [word for word in words if word not in output]
        if code != 1 or missing:
            raise DiffersError(f"exit status {code}, without {missing}: {output}")

    # What happens.

    def kill_a_rank(self) -> None:
        if ranks := self.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(ranks), signal.SIGKILL)

    def kill_the_driver(self) -> None:
        if self.command is not None:
            self.command.kill()
            self.end()
        self.begin()

    def kill_everything(self) -> None:
        if self.command is not None:
            self.command.kill()
        for pid in self.box.processes(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.command is not None:
            self.end()
        self.begin()

    def preempt(self) -> None:
        """SIGTERM to torchrun, as a pod gets it."""
        ranks = self.ranks()
        if ranks:
            with contextlib.suppress(OSError, ValueError):
                status = Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()
                os.kill(int(status[1]), signal.SIGTERM)

    def edit(self) -> None:
        """A setting that changes no result."""
        self.stop()
        self.spec["config"] |= {
            "log_steps": self.rng.choice([2, 5, 10]),
            "eval_steps": self.rng.choice([50, 100]),
        }
        self.begin()

    def edit_what_is_fixed(self) -> None:
        self.stop()
        key, value = self.rng.choice([("batch_size", 16), ("n_embd", 64), ("optimizer", "sgd")])
        good = dict(self.spec["config"])
        self.spec["config"] = good | {key: value}
        if self.newest:
            self.refused(f"config.{key}: {value!r}", f"trained with {CONFIG.get(key, 'adamw')!r}")
        self.spec["config"] = good
        self.begin()

    def break_and_repair_the_data(self) -> None:
        self.stop()
        good = self.corpus.read_text()
        broken = self.rng.choice([good.upper(), None])
        self.corpus.unlink()
        if broken is not None:
            self.corpus.write_text(broken)
        if self.newest or broken is None:
            self.refused("config.corpus", "restore that text" if broken else "does not exist here")
        self.corpus.write_text(good)
        status = self.box.status(self.name)
        self.begin(retry=status.get("phase") == "Failed")

    def delete_and_create_again(self) -> None:
        code, output = self.box.cli("delete", self.name, "--yes", "--keep-data")
        if code != 0:
            raise DiffersError(f"delete: {output}")
        if self.command is not None:
            self.end()
        self.begin()

    def branch(self) -> None:
        self.stop()
        if not self.newest:
            return self.begin()
        old, self.name = self.name, f"{self.name}-b"
        self.spec = self.spec | {"startFrom": {"run": old, "step": "newest"}}
        self.newest = 0
        return self.begin()

    @property
    def operations(self) -> list[Callable[[], None]]:
        return [
            self.kill_a_rank,
            self.kill_the_driver,
            self.kill_everything,
            self.preempt,
            self.edit,
            self.edit_what_is_fixed,
            self.break_and_repair_the_data,
            self.delete_and_create_again,
            self.branch,
        ]

    def play(self) -> str:
        """The whole sequence; returns what happened, in words. Raises DiffersError."""
        story: list[str] = []
        self.begin()
        count = self.rng.randint(*OPERATIONS)
        for number in range(count):
            self.until_step(int(STEPS * (number + self.rng.random()) / (count + 1)))
            self.revive()
            self.check_nothing_lost()
            operation = self.rng.choice(self.operations)
            story.append(f"{operation.__name__} at {self.logged()}")
            operation()
        while self.command is not None:
            code, output = self.end()
            if code == 1 and self.box.status(self.name)["phase"] == "Failed":
                story.append("retry")
                self.begin(retry=True)
            elif code != 0:
                raise DiffersError(f"{', '.join(story)}: exit status {code}: {output}")
        self.check_nothing_lost()
        return ", ".join(story).replace("_", " ")

    def revive(self) -> None:
        """If a kill has used up maxRestarts, ask for another attempt."""
        if self.command is None or self.active():
            return
        code, output = self.end()
        if code == 1 and "failed" in output:
            self.begin(retry=True)
        elif code != 0:
            raise DiffersError(f"exit status {code}: {output}")

    def result(self) -> dict[str, str]:
        return digests(self.data, STEPS)


def reference(folder: Path) -> dict[str, str]:
    """The state at the end of the run that nothing happens to."""
    undisturbed = Sequence(folder, random.Random(0))
    undisturbed.begin()
    code, output = undisturbed.end()
    if code != 0:
        raise DiffersError(output)
    return undisturbed.result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sequences")
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trainyard-sequences-"))
    began = time.monotonic()
    expected = reference(folder / "reference")
    failures = 0
    for number in range(options.sequences):
        sequence = Sequence(folder / str(number), random.Random(f"{options.seed}-{number}"))
        try:
            story = sequence.play()
            if sequence.result() != expected:
                raise DiffersError(f"{story}: other weights than the undisturbed run")
            print(f"sequence {number:>3}  the same: {story}", flush=True)
            shutil.rmtree(sequence.box.path)
        except AssertionError as error:
            failures += 1
            print(f"FAILED  sequence {number}: {error}", flush=True)
        finally:
            sequence.box.close()
    same = options.sequences - failures
    seconds = time.monotonic() - began
    print(f"{options.sequences} sequences, {same} ended the same ({seconds:.0f} s)")
    if failures:
        print(f"what they left: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
