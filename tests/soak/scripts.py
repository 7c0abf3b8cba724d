"""Kills scripts that use trainyard.Checkpointer at random moments; they must resume bitwise.

    python -m tests.soak.scripts --kills 100 --seed 1

Three scripts (one process with torchdata's loader, DDP and FSDP2 on two to four ranks; see
tests/support/sdk/train.py) are trained twice: in one go, and killed by SIGKILL and started again
until they end. Compared is every byte of the state in every checkpoint: weights, optimizer,
moving average, scheduler, loaders and random states. The ranks are forked from a process that has
torch loaded, with torchrun's variables: each would spend seconds importing it.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.patience import SECONDS, until
from tests.ports import free_port
from tests.support.trainer.checkpoint_tensors import digests
from trainyard_api.checkpoint import CHECKPOINTS, step_name, step_of
from trainyard_storage.checkpoints import newest_valid, steps

STEPS = 40
MAX_KILLS_PER_RUN = 4


@dataclass(frozen=True)
class Script:
    """One way to train."""

    model: str
    loader: str
    ranks: int

    @property
    def arguments(self) -> list[str]:
        return ["train.py", f"--model={self.model}", f"--loader={self.loader}", f"--steps={STEPS}"]

    def __str__(self) -> str:
        return f"{self.model} x {self.ranks}, loader {self.loader}"


def scripts(rng: random.Random) -> Iterator[Script]:
    """All of them, over and over; DDP and FSDP with every number of ranks in turn.

    Two come last: the order of a sum of two can't be wrong.
    """
    ddp, fsdp = (itertools.cycle([*rng.sample((3, 4), 2), 2]) for _ in range(2))
    while True:
        yield Script("plain", "stateful", 1)
        yield Script("ddp", "worker", next(ddp))
        yield Script("fsdp", "steps", next(fsdp))


@dataclass
class Gang:
    """The ranks of one attempt."""

    run_dir: Path
    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Whether all have ended."""
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self) -> list[int]:
        until(self.poll, f"{self.run_dir} ends within {SECONDS} s")
        return [self.codes[pid] for pid in self.pids]

    def kill(self, pids: list[int]) -> None:
        """SIGKILL to those that still run, with their loader workers."""
        self.poll()
        for pid in pids:
            if pid not in self.codes:
                os.killpg(pid, signal.SIGKILL)


def start(script: Script, run_dir: Path, attempt: int) -> Gang:
    run_dir.mkdir(exist_ok=True)
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(script.ranks),
        "TRAINYARD_RUN": "soak",
        "TRAINYARD_RUN_DIR": str(run_dir),
        "TRAINYARD_ATTEMPT": str(attempt),
    }
    pids = [fork(script, variables | {"RANK": str(rank)}) for rank in range(script.ranks)]
    return Gang(run_dir, pids)


def fork(script: Script, variables: dict[str, str]) -> int:
    """Start one rank in a process group of its own; returns its id."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        os.environ.update(variables)
        log = Path(variables["TRAINYARD_RUN_DIR"], f"rank-{variables['RANK']}.log")
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = script.arguments
        from tests.support.sdk import train

        train.main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def state(run_dir: Path, step: int) -> dict[str, str]:
    """Everything that a checkpoint has."""
    directory = run_dir / CHECKPOINTS / step_name(step)
    found = digests(run_dir, step)
    for name in ("script.json", "script.pt"):
        if (directory / name).exists():
            found[name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    return found


def states(run_dir: Path) -> dict[int, dict[str, str]]:
    return {step_of(path): state(run_dir, step_of(path)) for path in steps(run_dir / CHECKPOINTS)}


def logs(run_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted(run_dir.glob("rank-*.log")))


class Soak:
    """Trains, kills and compares; everything lies below `folder`."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.calm: dict[Script, tuple[dict[int, dict[str, str]], float]] = {}

    def kill_and_resume(self, script: Script, name: str, most: int) -> int:
        """One run that is killed up to `most` times; returns how often it was.

        Raises AssertionError where it isn't the run that was never killed.
        """
        whole, seconds = self.reference(script)
        run_dir, kills = self.folder / name, 0
        for attempt in itertools.count(1):
            gang = start(script, run_dir, attempt)
            struck = attempt <= most and self.strike(gang, seconds)
            codes = gang.wait()
            if not struck:
                assert not any(codes), f"exit codes {codes}\n{logs(run_dir)}"
                break
            kills += 1
            _, manifest, _ = newest_valid(run_dir / CHECKPOINTS)
            print(
                f"  {script}: killed; resumes from {manifest.step if manifest else 0}", flush=True
            )
        found = states(run_dir)
        for step, expected in whole.items():
            wrong = [key for key in expected if found.get(step, {}).get(key) != expected[key]]
            assert not wrong, f"{run_dir}: step {step}: {wrong[:5]}"
        shutil.rmtree(run_dir)
        return kills

    def reference(self, script: Script) -> tuple[dict[int, dict[str, str]], float]:
        """The states of the run that is never killed, and how long it takes."""
        if script not in self.calm:
            run_dir = self.folder / f"calm-{script.model}-{script.ranks}"
            began = time.monotonic()
            gang = start(script, run_dir, 1)
            assert not any(gang.wait()), logs(run_dir)
            self.calm[script] = states(run_dir), time.monotonic() - began
            assert len(self.calm[script][0]) == STEPS
        return self.calm[script]

    def strike(self, gang: Gang, seconds: float) -> bool:
        """Kill all ranks, or first one of them, at a random moment; False if they ended before.

        The moment is a random time after a random step was saved, or after the start.
        """
        target = self.rng.randrange(STEPS)
        saved = gang.run_dir / CHECKPOINTS / step_name(target)
        pause = self.rng.uniform(0, 3 * seconds / STEPS)
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if gang.poll():
                return False
            if target and not saved.exists():
                deadline = time.monotonic() + pause
            time.sleep(0.0005)
        first = [self.rng.choice(gang.pids)] if self.rng.random() < 0.5 else gang.pids
        gang.kill(first)
        for pid in gang.pids:  # torchrun stops the others
            if pid not in first and not gang.poll() and pid not in gang.codes:
                os.kill(pid, signal.SIGTERM)
        until(lambda: all(pid in gang.codes for pid in first) or gang.poll(), "it dies")
        gang.kill(gang.pids)
        return -signal.SIGKILL in gang.wait()


def preload() -> None:
    """Import what every rank needs, before they are forked."""
    import torch._dynamo
    import torch.distributed.checkpoint.staging
    import torch.distributed.checkpoint.state_dict_saver
    import torch.distributed.fsdp  # noqa: F401
    import torchdata.stateful_dataloader  # type: ignore[import-untyped]  # noqa: F401

    import trainyard
    from tests.support.sdk import train  # noqa: F401

    assert trainyard.Checkpointer is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.scripts")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    preload()
    folder = Path(tempfile.mkdtemp(prefix="trainyard-scripts-"))
    tempfile.tempdir = str(folder)  # who is killed leaves temporary files
    soak = Soak(folder, random.Random(options.seed))
    began, kills, exact = time.monotonic(), 0, 0
    for number, script in enumerate(scripts(soak.rng)):
        most = min(soak.rng.randint(1, MAX_KILLS_PER_RUN), options.kills - kills)
        if most == 0:
            break
        try:
            struck = soak.kill_and_resume(script, f"run-{number}", most)
        except AssertionError as error:
            print(f"NOT EXACT  {script}, run {number}: {error}", flush=True)
            print(f"what it left: {folder}")
            return 1
        kills, exact = kills + struck, exact + struck
        print(json.dumps({"run": number, "script": str(script), "kills": kills}), flush=True)
    seconds = time.monotonic() - began
    print(f"{kills} kills, {exact} exact resumes ({seconds:.0f} s, seed {options.seed})")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
