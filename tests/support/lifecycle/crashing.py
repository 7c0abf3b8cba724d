"""Plans carried out action by action, in a small world where any action may be the crash."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.support.lifecycle.builders import T0
from trainyard_lifecycle.plan import Plan
from trainyard_study.plan import StudyPlan

_LIMIT = 1500


class ConflictError(Exception):
    """What a plan was made from has changed: the rest of the plan is dropped."""


@dataclass(frozen=True)
class Turn:
    """One reconcile.

    Attributes:
        plan: made when the turn began.
        apply: carries out one action (status, claim, delete or create). Raises ConflictError.
        about: distinguishes its events from those of other objects.
    """

    plan: Plan | StudyPlan
    apply: Callable[[str, Any], None]
    about: str = ""


class World(ABC):
    """What an operator sees and changes."""

    def __init__(self) -> None:
        self.now: datetime = T0
        self.events: dict[str, str] = {}

    @abstractmethod
    def turns(self) -> Iterator[Turn]:
        """The reconciles of one second, each decided when it is asked for."""

    @abstractmethod
    def tick(self, second: int) -> None:
        """A second passes."""

    @abstractmethod
    def over(self) -> bool:
        """Whether the status says that nothing more will come."""

    def play(self, crashes: Collection[int], away: Collection[int] = ()) -> None:
        """Operate until all is over.

        crashes: the n-th action dies if n is in it, and with it the second's other reconciles.
        away: seconds in which no operator runs.
        """
        self._done = 0
        for second in range(_LIMIT):
            if second not in away and self._operate(crashes) and self.over():
                return
            self.tick(second)
        raise AssertionError(f"not finished: {self.__dict__}")

    def _operate(self, crashes: Collection[int]) -> bool:
        """Carry out the plans of one second; whether nothing is left to delete."""
        settled = True
        for turn in self.turns():
            todo = actions(turn.plan)
            settled = settled and not any(kind in ("claim", "delete") for kind, _ in todo)
            for kind, value in todo:
                self._done += 1
                if self._done in crashes:
                    return False  # killed: the rest is never carried out
                if kind == "event":
                    self.events.setdefault(turn.about + value.key, value.message)
                    continue
                try:
                    turn.apply(kind, value)
                except ConflictError:
                    settled = False
                    break
        return settled


def actions(plan: Plan | StudyPlan) -> list[tuple[str, Any]]:
    """The plan as single actions, in the order that plan.py promises."""
    claim = plan.claim if isinstance(plan, Plan) else None
    followed = plan.status.model_copy(update={"when_deleted": claim})
    return [
        *(("event", event) for event in plan.events),
        ("status", plan.status),
        *([("claim", claim), ("status", followed)] if claim else []),
        *(("delete", name) for name in plan.delete),
        *(("create", wanted) for wanted in plan.create),
    ]
