"""Which rank the others waited for until a collective timed out, by what each had recorded.

NCCL's own words come from the ranks that waited. torch's flight recorder knows of every rank which
collectives it has entered, and the agents say where each rank was in each group.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from signal import SIGABRT, SIGTERM

from trainyard_lifecycle.diagnosis import MAX_MESSAGE, Failure, shorten
from trainyard_lifecycle.plan import Position, Worker

DEFAULT_GROUP = "default_pg"  # that of all ranks, as torch describes it
# Ranks also write their records when a collective fails. Then one that is late is not the cause.
_TIMED_OUT = 0.95  # of the time limit
_MAX_NAMED = 8

_At = list[tuple[Worker, Position]]


def find_missing(gang: Sequence[Worker], world_size: int) -> Failure | None:
    """The hang that ended a gang of `world_size` ranks; None if no collective has timed out."""
    groups: dict[str, _At] = {}
    for worker in gang:
        for position in worker.collectives:
            groups.setdefault(position.group, []).append((worker, position))
    found = [_judge(group, at, world_size) for group, at in groups.items() if _has_timed_out(at)]
    if not found:
        return None
    # A rank that waits in another group waits for somebody else.
    waiting = _ranks((worker, at) for at_ in groups.values() for worker, at in at_ if _waits(at))
    ranks, worker, message = min(
        found, key=lambda each: (not each[0], not set(each[0]).isdisjoint(waiting))
    )
    if any(_died(rank, gang) for rank in ranks):
        return None  # how it died says more
    line = shorten(f"{worker.name}: {message}", MAX_MESSAGE)
    return Failure("Hang", line, worker.name, worker.exit_code)


def _judge(group: str, at: _At, world_size: int) -> tuple[list[int], Worker, str]:
    """The ranks that the others of a group waited for, a worker that knows, and a sentence."""
    first = min(each.seq for _, each in at if _waits(each))
    inside = [(worker, each) for worker, each in at if _waits(each) and each.seq == first]
    waited = (
        f"{_name(_ranks(inside))} waited for {max(each.waiting or 0 for _, each in inside):.0f} s"
    )
    here = _describe(inside[0][1])
    behind = [(worker, each) for worker, each in at if not _waits(each) and each.seq < first]
    if behind:
        worker, last = behind[0]
        message = f"{_name(_ranks(behind))} did not enter {here}, in which {waited}"
        if last.seq:
            message += f"; rank {last.ranks[0]} was last in {_describe(last)}"
        return _ranks(behind), worker, message
    operations = Counter(each.op for _, each in inside for _ in each.ranks)
    if len(operations) > 1:
        rare = min(operations, key=lambda op: (operations[op], op))
        odd = [(worker, each) for worker, each in inside if each.op == rare]
        rest = [(worker, each) for worker, each in inside if each.op != rare]
        message = (
            f"{_name(_ranks(odd))} entered {_describe(odd[0][1])} while {_name(_ranks(rest))}"
            f" entered {_describe(rest[0][1])}; {waited}"
        )
        return _ranks(odd), odd[0][0], message
    absent = sorted(set(range(world_size)).difference(_ranks(at)))
    if group == DEFAULT_GROUP and absent:
        message = f"{_name(absent)} left no record of {here}, in which {waited}"
        return absent, inside[0][0], message
    # The members of other groups aren't known, and a message has no room for all positions.
    entered = "which all had entered" if group == DEFAULT_GROUP else "no rank is known to miss it"
    message = f"{waited} in {here}, {entered}: a GPU or the network did not respond"
    return [], inside[0][0], message


def _waits(position: Position) -> bool:
    return position.waiting is not None


def _has_timed_out(at: _At) -> bool:
    return any(each.waiting and each.waiting >= _TIMED_OUT * each.limit > 0 for _, each in at)


def _died(rank: int, gang: Sequence[Worker]) -> bool:
    """Whether it ended before the others of its node. All ranks abort after a time-out."""
    first = [worker.ranks[0] for worker in gang if worker.ranks]
    return any(
        each.rank == rank and each.exit_code not in (0, -SIGABRT, -SIGTERM) for each in first
    )


def _ranks(at: Iterable[tuple[Worker, Position]]) -> list[int]:
    return sorted({rank for _, position in at for rank in position.ranks})


def _name(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1 and 3`, `ranks 0, 1, 2, 3, 4, 5, 6, 7 and 56 more`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = [str(rank) for rank in ranks[:_MAX_NAMED]]
    last = f"{len(ranks) - _MAX_NAMED} more" if ranks[_MAX_NAMED:] else shown.pop()
    return f"ranks {', '.join(shown)} and {last}"


def _describe(position: Position) -> str:
    """`all_reduce #141 (train.py:30 step)`."""
    group = "" if position.group == DEFAULT_GROUP else f" of group {position.group}"
    where = f" ({position.where})" if position.where else ""
    return f"{position.op} #{position.seq}{group}{where}"
