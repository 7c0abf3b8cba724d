"""Where and how the checks run: the device, the sizes, and trainer ranks to run them with."""

import argparse
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tests.gpu.rows import Row
from tests.support.trainer import memory
from tests.support.trainer.ranks import Launcher, RankServer, Run, tiny_job
from trainyard_api.job import TrainerJob

Device = Literal["cpu", "cuda"]
STEPS, SAVE_STEPS = 20, 5
SMALL_BACKEND = "aot_eager"  # see without_kernels.py
# Where the loss jumps, rounding does, too: the learning rates are low. On a GPU a head has the 64
# channels of real models.
SMALL = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, "learning_rate": 1e-3}
LARGE = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 256, "learning_rate": 2e-4}


@dataclass
class Setting:
    """What every check gets.

    Attributes:
        device: that is compared with the CPU.
        small: models so small that two cores do all of it in minutes.
        folder: for the runs.
        say: shows what is being done.
    """

    device: Device
    small: bool
    folder: Path
    say: Callable[[str], None]

    @cached_property
    def server(self) -> RankServer:
        server = memory.measuring_server(self.folder, self.device)
        server.preload("tests.gpu.plants")
        if self.small:
            server.preload("tests.gpu.without_kernels")
        return server

    @cached_property
    def _launcher(self) -> Launcher:
        return Launcher(self.server, self.folder / "ranks")

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @cached_property
    def corpus(self) -> Path:
        """A text of 20,000 characters."""
        path = self.folder / "corpus.txt"
        path.write_text(inspect.getsource(argparse)[:20_000])
        return path

    def job(self, name: str, device: Device | None = None, **changes: Any) -> TrainerJob:
        """A run of char-gpt on `device`; `changes` are fields of the job, and of its config."""
        config = (SMALL if self.small else LARGE) | {
            "corpus": str(self.corpus),
            "max_steps": STEPS,
            "batch_size": 8,
            "warmup_steps": 5,
            "eval_steps": 0,
            "eval_batches": 1,
            "log_steps": 1,
            "sample_tokens": 8,
        }
        config |= changes.pop("config", {})
        return tiny_job(
            self.folder / name,
            "char-gpt",
            config,
            run=name,
            checkpoint={"everySteps": SAVE_STEPS, "keepLast": STEPS},
            require_gpu=(device or self.device) == "cuda",
            **changes,
        )

    def new_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def run(self, job: TrainerJob, plant: str = "", ranks: int = 1, **env: str) -> Run:
        """Start it and wait for its end, whichever that is. `plant`: see plants.py."""
        self.say(f"{job.run} on {'a GPU' if job.require_gpu else 'the CPU'}")
        found = self._launcher(job, ranks, env={"PLANT": plant} | env)
        found.wait()
        return found

    def train(self, job: TrainerJob) -> Run:
        """Run it to its end. Raises RuntimeError with its reason if it fails."""
        found = self.run(job)
        if any(found.codes.values()):
            raise RuntimeError(f"{job.run} failed: {_reason(found)}")
        return found

    def close(self) -> None:
        """End what still runs."""
        if "server" in self.__dict__:
            self._launcher.close()
            self.server.close()


Check = Callable[[Setting], Iterator[Row]]


def _reason(run: Run) -> str:
    """Why it failed: its own words, or the last line of a rank that was killed."""
    if (run.folder / "result.json").exists():
        return run.error_message()
    return last_line(run.err)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
