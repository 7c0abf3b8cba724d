"""Watches the ranks of this node, and on node 0 those of the whole gang, for a hang."""

from __future__ import annotations

import socket
import sys
import threading
import time
from typing import Callable, Mapping, NamedTuple

from trainyard_agent.activity import Activity
from trainyard_agent.gpus import Gpus
from trainyard_agent.hangs import Hang, RankState, find_hang, from_wire
from trainyard_agent.peers import ask_all
from trainyard_agent.ranks import RankWatch
from trainyard_agent.report import Report
from trainyard_agent.summary import SummaryThread
from trainyard_agent.trainer import TrainerReport
from trainyard_agent.usage import RankUsage

MAX_INTERVAL = 2.0  # seconds between two looks at the ranks
LOOKS = 20  # within `after` at least
TRAINER_AFTER = 40.0  # of a recipe, whose own watchers are silent for longer than they allow


class Settings(NamedTuple):
    """What to watch for.

    Attributes:
        after: seconds without progress that are a hang.
        restarts: end the attempt; else only report it.
        trains: they are a recipe's ranks. Its own watchers, threads of the ranks, decide what is a
            hang as long as all of them show life; then nobody judges here.
        peers: HOST:PORT of the agents of the other nodes; empty on all nodes but the first.
    """

    after: float
    restarts: bool
    trains: bool
    peers: tuple[str, ...]

    @property
    def suspicious(self) -> float:
        """Seconds without work after which stacks are read, which pauses a rank on a GPU.

        Those of a recipe matter only once its own watchers are silent: its data, for instance, may
        be prepared for long without a call of Python.
        """
        return self.after * (0.75 if self.trains else 1 / 3)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """As the executor set them for this worker."""
        trains = "TRAINYARD_TRAINER_PORT" in environment
        usual = TRAINER_AFTER if trains else 0
        after = float(environment.get("TRAINYARD_HANG_SECONDS", usual)) or float("inf")
        restarts = trains or environment.get("TRAINYARD_HANG_ACTION") == "restart"
        peers = environment.get("TRAINYARD_PEERS", "").split(",")
        return cls(after, restarts, trains, tuple(filter(None, peers)))


class HangWatch:
    """A thread that looks every few seconds at the ranks of one worker, and at what they use."""

    def __init__(
        self,
        settings: Settings,
        ranks: RankWatch,
        report: Report | TrainerReport | None,
        end: Callable[[str], None],
    ) -> None:
        """`report`: on node 0, where a hang of the gang is looked for.

        `end` is called with the message of a hang that ends the attempt.
        """
        self._settings = settings
        self._ranks = ranks
        self._judges = report is not None
        self._report = report if isinstance(report, Report) else None
        self._end = end
        self._gpus = Gpus()
        self._host = socket.gethostname()
        self._interval = min(MAX_INTERVAL, settings.after / LOOKS)
        self._lock = threading.Lock()
        self._activities: dict[int, Activity] = {}  # by pid
        self._changes = -1
        self._named: tuple[int, ...] | None = None  # the ranks of the hang that is reported
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hangs", daemon=True)
        self._thread.start()
        if report is not None:
            SummaryThread(
                self.usages, settings.peers, report.saw_usage, self._interval, self._closing
            )

    def close(self) -> None:
        """Stop; a hang that is reported stays so."""
        self._closing.set()

    def states(self) -> list[RankState]:
        """The ranks of this node."""
        now = time.monotonic()
        with self._lock:
            states = [self._state(each, now) for each in self._activities.values()]
        ended = [each.rank for each in self._ranks.exits() if each.code == 0]
        return states + [RankState(rank, self._host, state="ended") for rank in ended]

    def usages(self) -> list[RankUsage]:
        """What the ranks of this node use."""
        with self._lock:
            activities = sorted(self._activities.values(), key=lambda each: each.rank.rank)
        return [
            RankUsage(
                each.rank.rank, each.usage.cpu_seconds, each.usage.memory, each.gpu, each.peak
            )
            for each in activities
            if each.usage
        ]

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.wait(self._interval):
            # The machine, or this process, was paused: nobody could have worked. A look at many
            # ranks may take as long, and is no pause.
            self._look(time.monotonic() - last > 5 * self._interval)
            if self._judges and not self._closing.is_set():
                self._judge()
            last = time.monotonic()

    def _look(self, paused: bool) -> None:
        known = {each.rank.pid: each for each in self._activities.values()}
        present = {rank.pid: rank for rank in self._ranks.ranks()}
        activities = {
            pid: known.get(pid) or Activity(rank, time.monotonic(), self._gpus)
            for pid, rank in present.items()
        }
        changes = self._report.changes if self._report else 0
        progressed = changes != self._changes or paused
        self._changes = changes
        for activity in activities.values():
            if progressed:
                activity.progressed(time.monotonic())
            activity.look(time.monotonic(), self._settings.suspicious)
        with self._lock:
            self._activities = activities
        if self._report is not None:
            self._report.saw_memory(max((each.peak for each in activities.values()), default=0))

    def _judge(self) -> None:
        """Report a hang, or that it is over."""
        states, after = self.states(), self._settings.after
        live = [state for state in states if state.state != "ended"]
        hang = None
        if live and all(state.waiting >= after for state in live):
            others, unseen = self._ask_peers()
            states += others
            if not self._settings.trains or any(state.silent for state in states):
                hang = find_hang(states, self._ranks.world_size, after, unseen)
        if hang and self._settings.restarts and hang.complete:
            self._print(hang)
            self._closing.set()
            self._end(hang.message)
        elif hang and hang.ranks != self._named:
            self._print(hang)
        named = hang.ranks if hang else None
        if named != self._named:  # said once: a message that counts seconds is a new one each time
            if self._report is not None:
                self._report.hang = hang.message if hang else ""
            self._named = named

    def _ask_peers(self) -> tuple[list[RankState], list[str]]:
        """The ranks of the other nodes, and which nodes do not answer."""
        ranks: list[RankState] = []
        unseen = []
        for peer, answer in zip(self._settings.peers, ask_all(self._settings.peers)):
            try:
                ranks += from_wire(answer)
            except ValueError:
                unseen.append(peer)
        return ranks, unseen

    def _state(self, activity: Activity, now: float) -> RankState:
        rank, stack = activity.rank, activity.stack
        return RankState(
            rank=rank.rank,
            host=self._host,
            pid=rank.pid,
            state="stopped" if activity.stopped else "alive",
            waiting=activity.waiting(now),
            frames=stack.frames,
            why=stack.why,
            own=stack.own,
            collective=stack.collective,
            backward=stack.backward,
            silent=activity.silent(now),
        )

    def _print(self, hang: Hang) -> None:
        print(f"trainyard: {hang.message}\n{hang.stacks}", file=sys.stderr, flush=True)
