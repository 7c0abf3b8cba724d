"""Records steps with torch.profiler where the settings, or a file in the run's directory, ask."""

import contextlib
import errno
import gzip
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from trainyard_api import profile as traces
from trainyard_storage.files import open_atomic
from trainyard_trainer.checkpoint.disk import reason
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import type_and_message
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.reporter import RunReporter

POLL_SECONDS = 1.0  # between two looks for a request
CLOSE_SECONDS = 120.0  # that the end of a run waits for its last trace


class Steps(NamedTuple):
    """The first and the last of some steps, counted from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"step {self.first}"
        return f"steps {self.first} to {self.last}"


class Profiler:
    """What one rank records. Whatever goes wrong costs a warning: it never fails the run.

    Rank 0 also records on request. A thread looks for requests and writes the traces, so that a
    slow disk delays no step. All methods are called by the training thread.
    """

    def __init__(
        self, run_dir: Path, config: TrainConfig, group: Group, start: int, reporter: RunReporter
    ) -> None:
        """`start`: steps done before this attempt."""
        self._run_dir = run_dir
        self._total = config.max_steps
        self._group = group
        self._reporter = reporter
        self._console = Console(enabled=True)  # each rank tells of its own traces
        self._planned = self._plan(config, start)
        self._asked = 0  # number of steps, by a request
        self._torch: profile | None = None  # while it records
        self._steps = Steps(0, 0)  # that it records
        self._slowed = [self._planned] if self._planned else []
        if self._planned and config.profile and group.rank not in config.profile.ranks:
            self._planned = None
        self._finished: queue.Queue[tuple[profile, Steps] | None] = queue.Queue()
        self._written: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        if group.is_main:  # what killed ranks have left, which is large; none records yet
            for scratch in self._run_dir.glob(f"{traces.DIRECTORY}/*/.rank-*"):
                shutil.rmtree(scratch, ignore_errors=True)
        if self._planned or group.is_main:
            self._thread = threading.Thread(target=self._work, name="profiler", daemon=True)
            self._thread.start()

    def _plan(self, config: TrainConfig, start: int) -> Steps | None:
        """The steps that the settings ask for, as far as this attempt trains them."""
        if config.profile is None:
            return None
        asked = Steps(*config.profile.steps)
        say = self._reporter.console.warn
        missing = [rank for rank in config.profile.ranks if rank >= self._group.world_size]
        if missing:
            ranks = f"0 to {self._group.world_size - 1}" if self._group.world_size > 1 else "only 0"
            say(f"config.profile.ranks: {missing[0]} is not a rank of this attempt ({ranks})")
        if asked.first > self._total:
            say(f"config.profile.steps: {asked} won't be recorded: step {self._total} is the last")
            return None
        if asked.last <= start:
            say(
                f"config.profile.steps: {asked} won't be recorded: this attempt begins after step"
                f" {start}"
            )
            return None
        return Steps(max(asked.first, start + 1), min(asked.last, self._total))

    def part(self, name: str) -> contextlib.AbstractContextManager[object]:
        """For a `with` block: it has this name in the trace."""
        return record_function(name) if self._torch else contextlib.nullcontext()

    def slows(self, step: int) -> bool:
        """Whether a recording makes this step longer, on any rank as far as this one knows.

        Also the steps beside the recorded ones: the profiler warms up in one, and in the other the
        ranks may wait for the one that has recorded.
        """
        return any(steps.first - 1 <= step <= steps.last + 1 for steps in self._slowed)

    def begin(self, step: int) -> None:
        """Step number `step` begins."""
        self._report()
        if self._torch:
            return
        if self._planned and step >= self._planned.first - 1:
            planned, self._planned = self._planned, None
            if step <= planned.last:
                self._start(step, Steps(max(step, planned.first), planned.last))
            else:
                self._console.warn(f"{planned} not recorded: a recording on request took longer")
        elif self._asked:
            asked = Steps(step + 1, min(step + self._asked, self._total))
            self._asked = 0
            if asked.first > self._total:
                self._console.warn(f"nothing was recorded: step {self._total} is the last")
                return
            self._slowed.append(asked)
            self._start(step, asked)

    def _start(self, step: int, steps: Steps) -> None:
        """Record `steps`; in a `step` before them the profiler warms up."""

        def action(number: int) -> ProfilerAction:
            if number < steps.first and step < steps.first:
                return ProfilerAction.WARMUP
            last = number == steps.last
            return ProfilerAction.RECORD_AND_SAVE if last else ProfilerAction.RECORD

        self._console.info(f"recording {steps}, which makes them longer")
        activities = [ProfilerActivity.CPU]
        if self._group.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        else:  # torch's recorder would print as an error that there is no GPU
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        try:
            with self._reporter.liveness.doing("profiling"):
                recording = profile(activities=activities, schedule=action)
                recording.step_num = step  # so that the trace has the run's own numbers
                recording.start()
        except Exception as error:  # such as a profiler of the recipe's own
            self._warn(steps, error)
            return
        self._torch, self._steps = recording, steps

    def end(self, step: int) -> None:
        """Step number `step` has ended, with the evaluation and the save that follow it."""
        if self._torch is None:
            return
        try:
            if step < self._steps.last:
                self._torch.step()
                return
            with self._reporter.liveness.doing("profiling"):
                self._torch.stop()
            self._finished.put((self._torch, self._steps))
        except Exception as error:
            self._warn(self._steps, error)
        self._torch = None

    def close(self) -> None:
        """The last step is done: wait for the trace that is being written."""
        if self._thread is None:
            return
        with self._reporter.liveness.doing("profiling"):
            self._finished.put(None)
            self._thread.join(CLOSE_SECONDS)
        self._report()

    def _report(self) -> None:
        """Say what has been written, in this thread: the reporter is not thread-safe."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._reporter.update(profile=self._written.get_nowait())

    def _warn(self, steps: Steps, error: Exception) -> None:
        what = type_and_message(error)[:300]
        if isinstance(error, OSError):
            what = reason(error, self._run_dir)
        self._console.warn(f"no trace of {steps}: {what}; training continues")

    def _work(self) -> None:
        """In the thread: write traces, and on rank 0 look for requests."""
        looking = self._group.is_main
        while True:
            try:
                finished = self._finished.get(timeout=POLL_SECONDS if looking else None)
            except queue.Empty:
                looking = self._look()
                continue
            if finished is None:
                return
            self._write(*finished)

    def _look(self) -> bool:
        """Take up a request; False if it can't be removed, so that it isn't followed for ever."""
        file = self._run_dir / traces.REQUEST
        try:
            with file.open("rb") as opened:
                text = opened.read(20).decode(errors="replace").strip()
            file.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            self._console.warn(f"{file}: {error.strerror}; no more traces on request")
            return False
        if text.isdecimal() and 1 <= int(text) <= traces.MAX_STEPS:
            self._asked = int(text)
        else:
            self._console.warn(
                f"{file}: {text!r} is no number of steps from 1 to {traces.MAX_STEPS}"
            )
        return True

    def _write(self, recording: profile, steps: Steps) -> None:
        """In the thread: write a trace, in Chrome's format."""
        name = traces.trace_path(*steps, self._group.rank)
        path = self._run_dir / name
        scratch = path.with_name(f".rank-{self._group.rank}")
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            try:
                plain = scratch / "trace.json"
                recording.export_chrome_trace(str(plain))
                _check_complete(plain)
                _compress(plain, path)
            finally:
                shutil.rmtree(scratch)  # torch leaves a part of a trace in it if the disk is full
            size = path.stat().st_size / 2**20
        except Exception as error:
            self._warn(steps, error)
            return
        self._console.info(
            f"{steps} recorded in {path} ({size:.1f} MiB); open it at {traces.VIEWER}"
        )
        self._written.put(name)


def _check_complete(trace: Path) -> None:
    """Raise OSError if torch had no room for a trace: it then writes a part of it, or nothing."""
    with contextlib.suppress(FileNotFoundError), trace.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16))
        if file.read().rstrip().endswith(b"}"):
            return
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _compress(trace: Path, target: Path) -> None:
    with (
        open_atomic(target, durable=False) as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file) as packed,
        trace.open("rb") as source,
    ):
        shutil.copyfileobj(source, packed, 1 << 20)
