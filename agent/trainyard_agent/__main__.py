"""Starts a worker's command, forwards SIGTERM, records how it and its ranks ended, cleans up.

Started as `python -I -S .../trainyard_agent/__main__.py DIR LOCK_FD ARGV...`, in milliseconds.

On one machine it outlives `trainyard run`, so killing that process loses nothing. It holds the lock
of its worker's directory until it exits. The lock, not a process id, determines whether a worker is
alive, so a reused id or a reboot cannot be mistaken for it. In a pod there is no lock (`-` for
LOCK_FD), and the record is the pod's termination message.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # by its path: the library's modules come first
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from trainyard_agent import procfs
from trainyard_agent.activity import HEARTBEATS_ENV
from trainyard_agent.ending import record_error, termination_message, write_exit
from trainyard_agent.flight import FlightRecorder
from trainyard_agent.foreign import Follower, Found, survey
from trainyard_agent.hangs import RankState
from trainyard_agent.ranks import RankExit, RankWatch
from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer
from trainyard_agent.trainer import TrainerReport
from trainyard_agent.usage import RankUsage
from trainyard_agent.watch import HangWatch, Settings

# After SIGTERM; torchrun stops its ranks sooner. Processes left after this are killed.
GRACE_SECONDS = int(os.environ.get("TRAINYARD_GRACE_SECONDS", "28"))
COMMAND_NOT_FOUND = 127
_PR_SET_CHILD_SUBREAPER = 36


class Agent:
    """One worker, from its start to its recorded end."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.directory = directory
        self.command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._watch: RankWatch | None = None
        self._hangs: HangWatch | None = None
        self._checkpoints: Follower | None = None  # those that the script's framework writes
        self._hang = ""  # the message of a hang that ends the attempt
        self._stopping = False
        self._first = os.environ.get("TRAINYARD_NODE", "0") == "0"  # on it the script reports
        self._termination_log = os.environ.get("TRAINYARD_TERMINATION_LOG")

    def run(self) -> int:
        """Start the command, and wait for it; returns its exit code (128 + signal)."""
        woken = _wake_on_signals()
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        # A handler, not SIG_IGN, which the command would inherit. The driver stops its workers by
        # SIGTERM; SIGCHLD wakes the wait.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _ignore)
        server = self._report_server()
        recorder = FlightRecorder(os.environ, self.directory)
        variables = recorder.variables
        if server and self._first:
            variables.update(server.variables(self.directory))
        watch = Settings.of(os.environ)
        if server and watch.trains and sys.platform == "linux":
            variables[HEARTBEATS_ENV] = str(self.directory)
        try:
            environment = {**os.environ, **variables}
            self._child = subprocess.Popen(self.command, env=environment, stdin=subprocess.DEVNULL)
        except OSError as error:
            why = f"{self.command[0]}: {error.strerror}"
            print(f"cannot start {why}", file=sys.stderr, flush=True)
            what = "command" if self._termination_log is None else "container"
            record_error(self.directory, f"StartError: the {what} can't be started: {why}")
            return self._record(COMMAND_NOT_FOUND, [], [])
        if self._stopping:  # the signal came before the child existed
            self._child.terminate()
        if sys.platform == "linux":
            self._watch = RankWatch(self._child.pid)
            if server:
                report = server.report if self._first else None
                self._hangs = HangWatch(watch, self._watch, report, self._end_hang)
        code = _wait(self._child, woken)
        if self._hangs:
            self._hangs.close()
        exits = self._watch.end() if self._watch else []  # before those that are left are killed
        _end_orphans()
        signal.alarm(0)
        if server:
            server.close()
            if code == 0:
                if self._checkpoints:
                    self._checkpoints.end()
                server.write_result()
        groups = recorder.collect() if code else []
        code = self._record(code if code >= 0 else 128 - code, exits, groups)
        if groups:
            recorder.keep()
        return code

    def _record(self, code: int, exits: list[RankExit], groups: list[dict[str, Any]]) -> int:
        """Say how the worker ended, and where its ranks were; returns its exit code."""
        ranks = [each.to_wire() for each in exits]
        if self._hang and code:  # after torchrun, which removes the file before it writes its own
            record_error(self.directory, f"HangError: {self._hang}")
        path = self._termination_log
        if path is None:
            write_exit(self.directory, code, ranks, groups)
            return code
        try:
            text = termination_message(self.directory, code, ranks, groups)
            with open(path, "wb") as file:  # a mounted file, which can't be renamed over
                file.write(text.encode(errors="replace"))
        except OSError as error:  # the exit code says more than this
            print(f"warning: {path}: {error.strerror}", file=sys.stderr, flush=True)
        return code

    def _report_server(self) -> ReportServer | None:
        """The server of the report; None where the operator is too old to ask an agent for it."""
        port = os.environ.get("TRAINYARD_REPORT_PORT")
        if not port:
            return None
        run = os.environ["TRAINYARD_RUN"]
        # Rank 0 of a recipe reports on the first node only; on one machine all share its loopback.
        trainer = os.environ.get("TRAINYARD_TRAINER_PORT") if self._first else None
        report = TrainerReport(run, int(trainer)) if trainer else self._posted_report(run)
        server = ReportServer(report, self._world_size, self._rank_states, self._usages)
        # In a pod others connect from outside; elsewhere each node has its own loopback address.
        local = os.environ.get("PET_LOCAL_ADDR", "127.0.0.1")
        server.serve("" if "KUBERNETES_SERVICE_HOST" in os.environ else local, int(port))
        return server

    def _posted_report(self, run: str) -> Report:
        """What a script posts, and on the first node the checkpoints that its framework writes."""
        report = Report(run, int(os.environ["TRAINYARD_ATTEMPT"]))
        run_dir = os.environ.get("TRAINYARD_RUN_DIR") if self._first else None
        if run_dir:
            _say_torn(Path(run_dir))

            def found(newest: Found) -> None:
                report.checkpoint = newest

            self._checkpoints = Follower(Path(run_dir), found)
        return report

    def _world_size(self) -> int:
        return self._watch.world_size if self._watch else 0

    def _rank_states(self) -> list[RankState]:
        return self._hangs.states() if self._hangs else []

    def _usages(self) -> list[RankUsage]:
        return self._hangs.usages() if self._hangs else []

    def _end_hang(self, message: str) -> None:
        """End the attempt: no rank of a hang can save, and a stopped one can't act on SIGTERM."""
        self._hang = message
        for rank in self._watch.ranks() if self._watch else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGKILL)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        signal.alarm(GRACE_SECONDS)
        for rank in self._watch.ranks() if self._watch else []:
            if procfs.state(rank.pid) == "T":  # only then can it act on SIGTERM
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, signal.SIGCONT)
        if self._child is not None:
            self._child.terminate()

    def _kill(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()  # its ranks then become the agent's own children, and are ended


def main(arguments: list[str]) -> int:
    directory, lock, command = Path(arguments[0]), arguments[1], arguments[2:]
    _adopt_orphans()
    if lock == "-":
        directory.mkdir(exist_ok=True)
        return Agent(directory, command).run()
    os.set_inheritable(int(lock), False)
    identity = {"pid": os.getpid(), "boot": procfs.boot_id()}
    os.pwrite(int(lock), json.dumps(identity).encode(), 0)
    Agent(directory, command).run()
    return 0


def _say_torn(run_dir: Path) -> None:
    """Before the script chooses a checkpoint: which ones a killed attempt left incomplete."""
    found = survey(run_dir)
    newest = f"; the newest complete one is of step {found.newest.step}" if found.newest else ""
    for torn in found.torn:
        print(f"warning: torn checkpoint {torn}{newest}", file=sys.stderr, flush=True)


def _ignore(*_: object) -> None:
    pass


def _wake_on_signals() -> int:
    """A pipe that becomes readable with every signal.

    Linux may give a signal to any thread, and Python's handler then waits for the main thread. A
    main thread blocked in `waitid` would not notice; one that reads this pipe does.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    return woken


def _adopt_orphans() -> None:
    """Ranks whose torchrun was killed become the agent's children (Linux), as in a container."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait(child: subprocess.Popen[bytes], woken: int) -> int:
    """The child's exit code. Orphans are reaped meanwhile, as a container's first process must."""
    while child.poll() is None:
        _reap_orphans(child.pid)
        os.read(woken, 4096)
    return child.returncode


def _reap_orphans(child: int) -> None:
    """Reap what has ended, up to `child`, which belongs to its Popen."""
    if not hasattr(os, "waitid"):
        return
    with contextlib.suppress(ChildProcessError):  # none is left: SIGTERM's handler reaped the child
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is None or ended.si_pid == child:
                return
            os.waitpid(ended.si_pid, 0)


def _end_orphans() -> None:
    """Kill and reap the processes that torchrun left behind, until none is left.

    All are descendants of the agent; orphans become its children.
    """
    while True:
        for pid in procfs.children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
