"""Plans carried out action by action, in a small world where any action may be the crash."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import datetime
from typing import Any

from tests.support.lifecycle.builders import T0
from trainyard_lifecycle.plan import Plan
from trainyard_study.plan import StudyPlan

_LIMIT = 1500


class World(ABC):
    """What an operator sees and changes."""

    def __init__(self) -> None:
        self.now: datetime = T0
        self.events: dict[str, str] = {}

    @abstractmethod
    def decide(self) -> Plan | StudyPlan:
        """The plan for what is so now."""

    @abstractmethod
    def apply(self, kind: str, value: Any) -> None:
        """Carry out one action: status, claim, delete or create."""

    @abstractmethod
    def tick(self, second: int) -> None:
        """A second passes."""

    @abstractmethod
    def over(self) -> bool:
        """Whether the status says that nothing more will come."""

    def play(self, crashes: Collection[int]) -> None:
        """Operate until all is over; the n-th action dies if n is in `crashes`."""
        done = 0
        for second in range(_LIMIT):
            todo = actions(self.decide())
            for kind, value in todo:
                done += 1
                if done in crashes:
                    break  # killed: the rest of this plan is never carried out
                if kind == "event":
                    self.events.setdefault(value.key, value.message)
                else:
                    self.apply(kind, value)
            else:
                if self.over() and not any(kind in ("claim", "delete") for kind, _ in todo):
                    return
            self.tick(second)
        raise AssertionError(f"not finished: {self.__dict__}")


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
