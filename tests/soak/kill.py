"""Kills runs at random moments and compares the resumed runs with uninterrupted ones, bit for bit.

    python -m tests.soak.kill --kills 300 --seed 1 [--family char-gpt]

Every case (recipe family, strategy, ranks, loader workers) is trained twice: once in one go, and
once killed and started again, at places and moments drawn from the seed. Compared are the sha256 of
parameters, optimizer state and the random states of every rank in every checkpoint, the logged
losses, and the ids and noise of every batch that was delivered, 20 steps beyond the last included.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import until
from tests.ports import free_port
from tests.soak.families import COMMON, FAMILIES, SAVE_STEPS, Family
from tests.support.trainer.checkpoint_tensors import digests
from tests.support.trainer.ranks import Launcher, RankServer, Run
from trainyard_api.checkpoint import CHECKPOINTS, step_of
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import newest_valid, steps

RANKS = (1, 2, 3, 4)  # three or more: the sum of two is the same in any order
MAX_KILLS_PER_RUN = 3
MAX_FAILURES = 3  # then something is wrong with everything
# Up to how many times a run comes to each place, about; beyond that it ends before it is killed.
TIMES = {"batch": 11, "gradients": 11, "evaluation": 3, "save": 3, "write": 3, "export": 0}
FILE_OPERATIONS = 250
ANY_MOMENT = "any moment"

Delivered = dict[tuple[int, int], str]  # (rank, micro-batch) -> its ids and noise


class DiffersError(AssertionError):
    """A resumed run is not the one that was never killed."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    family: Family
    strategy: str
    ranks: int
    workers: int

    def __str__(self) -> str:
        who = f"{self.family.recipe} {self.strategy} x {self.ranks}"
        return f"{who}, {self.workers} loader workers"


@dataclass(frozen=True)
class Kill:
    """How and when a run dies.

    Attributes:
        rank: the one that dies first.
        place: where, as observer.py knows it, for the `count`-th time; or at `moment`, a share of
            what the whole run takes.
        alone: the others are then sent SIGTERM, as torchrun does; else they die as well, as when
            the machine is gone.
    """

    rank: int
    place: str
    count: int = 0
    moment: float = 0.0
    alone: bool = False

    @property
    def at(self) -> str:
        """As observer.py takes it."""
        return "" if self.place == ANY_MOMENT else f"{self.rank}:{self.place}:{self.count}"

    def __str__(self) -> str:
        when = f"after {self.moment:.0%}" if self.place == ANY_MOMENT else f"{self.count}"
        who = f"rank {self.rank}" if self.alone else "all ranks"
        return f"{who} killed at {self.place} {when}"


@dataclass
class Whole:
    """The run that was never killed."""

    states: dict[int, dict[str, str]]
    losses: dict[int, float]
    delivered: Delivered
    seconds: float


class Soak:
    """Trains, kills and compares; everything lies below `folder`."""

    def __init__(self, server: RankServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.launch = Launcher(server, folder / "ranks")
        self._settings: dict[str, dict[str, object]] = {}
        self._wholes: dict[tuple[str, str, int], Whole] = {}

    def job(self, case: Case, name: str, attempt: int, **config: object) -> TrainerJob:
        family = case.family
        if family.recipe not in self._settings:
            recipe = f"trainyard_trainer.recipes.{family.module}"
            self.server.preload("tests.support.trainer.observer", recipe, *family.imports)
            data = self.folder / "data" / family.recipe
            data.mkdir(parents=True)
            self._settings[family.recipe] = COMMON | family.settings(data)
        shared = {"batch_size": 12 if case.ranks == 3 else 8}  # evenly, in two micro-batches
        return TrainerJob.model_validate(
            {
                "run": "soak",
                "recipe": family.recipe,
                "config": self._settings[family.recipe] | shared | config,
                "strategy": case.strategy,
                "seed": 7,
                "checkpoint": {"everySteps": SAVE_STEPS, "keepLast": 100},
                "run_dir": str(self.folder / name),
                "report_port": free_port(),
                "attempt": attempt,
            }
        )

    def whole(self, case: Case) -> Whole:
        """The reference, without loader workers: they must change nothing either."""
        key = (case.family.recipe, case.strategy, case.ranks)
        if key not in self._wholes:
            job = self.job(case, "-".join(map(str, key)), 1)
            # A reference that was stopped half-way is trained again, so that it is undisturbed.
            shutil.rmtree(job.run_dir, ignore_errors=True)
            began = time.monotonic()
            run = self.start(job, case.ranks)
            finish(run)
            seconds = time.monotonic() - began
            saved = [step_of(path) for path in steps(run.run_dir / CHECKPOINTS)]
            states = {step: digests(run.run_dir, step) for step in saved}
            self._wholes[key] = Whole(states, run.losses(), delivered(run), seconds)
        return self._wholes[key]

    def start(self, job: TrainerJob, ranks: int, kill: str = "") -> Run:
        seen = self.folder / "seen" / str(len(self.launch.runs))
        seen.mkdir(parents=True)
        return self.launch(job, ranks, env={"OBSERVE": str(seen), "KILL": kill})

    def kill_and_resume(self, case: Case, kills: Sequence[Kill], name: str) -> Iterator[str]:
        """One run that meets `kills`, one an attempt; yields a line for each that struck.

        One that doesn't come in time is the end: the run has ended well.

        Raises DiffersError.
        """
        whole = self.whole(case)
        for attempt, kill in enumerate([*kills, None], start=1):
            job = self.job(case, name, attempt, dataloader_num_workers=case.workers)
            before = newest(Path(job.run_dir))
            struck = False
            if kill:
                struck, run = self.strike(job, case.ranks, kill, whole.seconds)
            else:
                run = self.start(job, case.ranks)
                finish(run)
            check_gone(run)
            compare("batches", whole.delivered, delivered(run))
            after = newest(run.run_dir)
            if after < before:
                raise DiffersError(f"the newest checkpoint was of step {before}, now {after}")
            if after in whole.states:
                compare(f"checkpoint of step {after}", whole.states[after], digests_of(run, after))
            if not struck:
                break
            yield f"{kill}; resumes from step {after}"
        last = max(whole.states)
        if after != last:
            raise DiffersError(f"ended at step {after}, not {last}")
        compare("losses", whole.losses, run.losses())
        if max(delivered(run)) != max(whole.delivered):
            raise DiffersError("the batches after the last step were not delivered")
        shutil.rmtree(run.run_dir)

    def strike(self, job: TrainerJob, ranks: int, kill: Kill, seconds: float) -> tuple[bool, Run]:
        """Start it and have it die; False if it ended first."""
        run = self.start(job, ranks, kill.at)
        target = run.pids[kill.rank]
        if kill.place == ANY_MOMENT:
            time.sleep(kill.moment * seconds)
            if run.running(target):
                os.kill(target, signal.SIGKILL)
        if kill.alone:
            run.wait()
        else:
            until(lambda: not run.running(target), "the rank dies", lambda: run.err)
            run.kill()
        died = -signal.SIGKILL in run.codes.values()
        if not died and any(run.codes.values()):
            raise DiffersError(f"failed by itself: {run.codes}\n{run.out}\n{run.err}")
        return died, run


def draw(rng: random.Random, ranks: int) -> Kill:
    """Any rank, any place, any time."""
    place = rng.choice([*TIMES, "files", "files", *[ANY_MOMENT] * 3])
    return Kill(
        # Only rank 0 writes much by Python, and only it publishes.
        rank=0 if place == "files" else rng.randrange(ranks),
        place=place,
        count=rng.randint(0, TIMES.get(place, FILE_OPERATIONS)),
        moment=rng.uniform(0, 0.9),
        alone=rng.random() < 0.5,
    )


def finish(run: Run) -> None:
    """Wait for a good end."""
    if any(codes := run.wait()):
        raise DiffersError(f"exit statuses {codes}\n{run.out}\n{run.err}")


def newest(run_dir: Path) -> int:
    """The step that the next attempt will resume from."""
    _, manifest, _ = newest_valid(run_dir / CHECKPOINTS)
    return manifest.step if manifest else 0


def digests_of(run: Run, step: int) -> dict[str, str]:
    return digests(run.run_dir, step)


def delivered(run: Run) -> Delivered:
    """What the ranks of one attempt were given."""
    found: Delivered = {}
    folder = Path(run.env["OBSERVE"])
    for path in folder.glob("rank-*.jsonl"):
        rank = int(path.stem.removeprefix("rank-"))
        for line in path.read_text().splitlines():
            batch = json.loads(line)
            found[rank, batch.pop("micro_batch")] = json.dumps(batch)
    return found


def compare(what: str, whole: dict, part: dict) -> None:  # type: ignore[type-arg]
    """Everything in `part` must be as in `whole`."""
    for key, value in part.items():
        if whole.get(key) != value:
            raise DiffersError(f"{what}: {key} is {value}, uninterrupted {whole.get(key)}")


def check_gone(run: Run) -> None:
    """No process of a rank (loader workers) may outlive it."""
    until(lambda: not left_behind(run), "every process of the ranks has ended")


def left_behind(run: Run) -> list[str]:
    """Processes in the ranks' sessions."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        state, session = fields[0], int(fields[3])
        if session in run.pids and state != "Z":
            found.append(path.parent.name)
    return found


def cases(names: Sequence[str], rng: random.Random) -> list[Case]:
    """Every family and strategy with and without loader workers; each has a number of ranks.

    Every strategy gets every number: one family the first, one the next, and so on.
    """
    found = []
    for strategy in ("ddp", "fsdp"):
        sizes = itertools.cycle(rng.sample(RANKS, len(RANKS)))
        for name in rng.sample(names, len(names)):
            ranks = next(sizes)
            found += [Case(FAMILIES[name], strategy, ranks, workers) for workers in (2, 0)]
    rng.shuffle(found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.kill")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="trainyard-kill-"))
    os.environ["TMPDIR"] = str(folder)  # who is killed leaves temporary files
    server = RankServer()
    soak = Soak(server, folder)
    names = options.family or sorted(FAMILIES)
    todo = cases(names, rng)
    kills = exact = failures = 0
    began = time.monotonic()
    try:
        for number in itertools.count():
            if kills >= options.kills or failures == MAX_FAILURES:
                break
            # Every case once, before others are killed more often, with other numbers of ranks.
            most = 1 if number < 4 * len(names) else MAX_KILLS_PER_RUN
            todo = todo or cases(names, rng)
            case = todo.pop()
            plan = [draw(rng, case.ranks) for _ in range(rng.randint(1, most))]
            mine = 0
            try:
                for line in soak.kill_and_resume(case, plan, f"run-{number}"):
                    kills, mine = kills + 1, mine + 1
                    print(f"kill {kills:>3}  {case}: {line}", flush=True)
                exact += mine
            except AssertionError as error:
                failures += 1
                what = "NOT EXACT" if isinstance(error, DiffersError) else "FAILED"
                print(f"{what}  {case}, run {number}: {error}", flush=True)
                soak.launch.runs[-1].kill()
    finally:
        soak.launch.close()
        server.close()
    seconds = time.monotonic() - began
    print(f"{kills} kills, {exact} exact resumes ({seconds:.0f} s, seed {options.seed})")
    if failures:
        print(f"what they left: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
