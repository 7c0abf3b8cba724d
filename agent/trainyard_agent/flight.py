"""Reads what torch's flight recorder has written of each rank's collectives.

When a collective of NCCL has timed out, every rank that lives writes its last collectives to a file
and aborts (torch 2.9 and newer; `fr_trace` of torch reads the files, too). The dumps of this node
are kept in the run's directory. What the agent records of them says where each rank was in each
group; which rank is behind is decided where all nodes are seen. Not measured with NCCL.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, Mapping, NamedTuple

from trainyard_agent.stacks import is_own

# By torch's new and old names. Where the user sets one, it stays, and is read from there.
_BUFFER = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_PREFIX = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
ENTRIES = 2000  # of each rank: torch's default, some 100 bytes each
FOLDER = "flight-recorder"
DEFAULT_GROUP = "default_pg"  # that of all ranks, as torch describes it
MAX_DUMP = 4 * 1024 * 1024
MAX_RANKS = 64  # of one node, as numProcPerNode allows
MAX_GROUPS = 8
KEEP_SECONDS = 20.0
_MAX_TEXT = 100
# What torch writes: containers, texts and numbers. Nothing that names or calls a class or function.
_OPCODES = re.compile(
    r"PROTO|STOP|MARK|NONE|NEW(TRUE|FALSE)|BININT[12]?|LONG1|BINFLOAT|BINUNICODE"
    r"|(LONG_)?BIN(GET|PUT)|EMPTY_(DICT|LIST|TUPLE)|SETITEMS?|APPENDS?|TUPLE[123]?"
)


class Position(NamedTuple):
    """Where a rank is among the collectives of one group.

    Attributes:
        seq: number of the collective: the first that has not ended, else the last; 0: none yet.
        op: such as all_reduce.
        where: the script's line that called it.
        waiting: seconds since then; None if it has ended.
        limit: seconds after which it times out.
    """

    group: str
    seq: int = 0
    op: str = ""
    where: str = ""
    waiting: float | None = None
    limit: float = 0.0


class FlightRecorder:
    """The dumps of one worker's ranks.

    Attributes:
        variables: what makes torch record, and write into the worker's directory; nothing that the
            user has set.
    """

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self._own = directory / FOLDER
        self._prefix = _given(environment, _PREFIX)
        self.variables: dict[str, str] = {}
        if not _given(environment, _BUFFER):
            self.variables[_BUFFER[0]] = str(ENTRIES)
        if not self._prefix:
            with contextlib.suppress(OSError):  # then torch has nowhere to write to
                self._own.mkdir(exist_ok=True)
            self.variables[_PREFIX[0]] = self._prefix = str(self._own / "rank_")
        run_dir, attempt = (
            environment.get("TRAINYARD_RUN_DIR"),
            environment.get("TRAINYARD_ATTEMPT"),
        )
        self._kept = Path(run_dir) / FOLDER / f"attempt-{attempt}" if run_dir else None
        self._older = _dumps(self._prefix)  # of another attempt

    def collect(self) -> list[dict[str, Any]]:
        """Where the ranks were, by group."""
        length = len(os.path.basename(self._prefix))
        return _by_group({int(path.name[length:]): positions(path) for path in self._new()})

    def keep(self) -> None:
        """Copy the dumps to the run's directory, unless they are where the user wants them.

        A volume that does not answer may be why the collective timed out: it is waited for briefly.
        """
        dumps = [path for path in self._new() if path.parent == self._own]
        if dumps and self._kept:
            copy = threading.Thread(target=_keep, args=(dumps, self._kept), daemon=True)
            copy.start()
            copy.join(KEEP_SECONDS)

    def _new(self) -> list[Path]:
        new = _dumps(self._prefix).items() - self._older.items()
        return [path for path, _ in sorted(new)[:MAX_RANKS]]


def _given(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _dumps(prefix: str) -> dict[Path, int]:
    """PREFIX0, PREFIX1, ..., one for each rank, and when they were written."""
    folder, name = os.path.split(prefix)
    found: dict[Path, int] = {}
    with contextlib.suppress(OSError):
        for each in os.scandir(folder or "."):
            if each.name.startswith(name) and re.fullmatch("[0-9]{1,6}", each.name[len(name) :]):
                found[Path(each.path)] = each.stat().st_mtime_ns
    return found


def _keep(dumps: list[Path], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for dump in dumps:
            shutil.copyfile(dump, folder / dump.name)
    except OSError as error:
        print(
            f"warning: the ranks' last collectives can't be kept in {folder}: {error.strerror}",
            file=sys.stderr,
            flush=True,
        )
    else:
        print(
            f"trainyard: the ranks' last collectives are in {folder}", file=sys.stderr, flush=True
        )


def positions(path: Path) -> list[Position]:
    """Where a rank was in each of its groups; empty, with a warning, if the dump can't be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DUMP + 1)
            written = os.fstat(file.fileno()).st_mtime
        return _positions(load(data), written)
    except Exception as error:  # written by a process that was dying
        print(f"warning: {path}: {error!r}"[:300], file=sys.stderr, flush=True)
        return []


def load(data: bytes) -> Any:
    """The document of a dump: a pickle of containers, texts and numbers.

    Raises ValueError for one with anything else: a pickle may call any function.
    """
    import pickle  # two megabytes, which only an attempt that has failed needs
    import pickletools

    if len(data) > MAX_DUMP:
        raise ValueError(f"more than {MAX_DUMP} bytes")
    for opcode, argument, _ in pickletools.genops(data):
        if not _OPCODES.fullmatch(opcode.name):
            raise ValueError(f"{opcode.name} does not belong into a dump")
        if "PUT" in opcode.name and int(argument or 0) > len(
            data
        ):  # memory is reserved up to this number
            raise ValueError("not a dump of torch")
    return pickle.loads(data)


def _positions(dump: dict[str, Any], written: float) -> list[Position]:
    found: dict[str, Position] = {}
    for name, config in dump["pg_config"].items():  # also those without a collective yet
        if name:  # gloo leaves it empty
            found[_group(name, config["desc"])] = Position(_group(name, config["desc"]))
    for entry in dump["entries"]:
        group = _group(*entry["process_group"])
        before = found.get(group)
        if entry["is_p2p"] or (before and before.waiting is not None):
            continue
        backend, _, op = str(entry["profiling_name"]).partition(":")
        # gloo's entries never become completed; they are retired when they end.
        ended = entry["state"] == "completed" or (backend == "gloo" and entry["retired"])
        since = max(0.0, written - int(entry["time_created_ns"]) / 1e9)
        found[group] = Position(
            group=group,
            seq=int(entry["collective_seq_id"]),
            op=_text(op),
            where=_where(entry.get("frames") or []),
            waiting=None if ended else round(since, 1),
            limit=int(entry["timeout_ms"]) / 1000,
        )
    return list(found.values())


def _group(name: str, description: str) -> str:
    """The same on all ranks; names are unique, descriptions aren't."""
    if description in ("", "undefined"):
        return _text(name)
    return DEFAULT_GROUP if description == DEFAULT_GROUP else _text(f"{description} {name}")


def _where(frames: list[dict[str, Any]]) -> str:
    """`train.py:12 step`: the innermost frame that is not a library's."""
    for frame in frames[:MAX_RANKS]:
        if is_own(str(frame["filename"])):
            return _text(f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}")
    return ""


def _by_group(ranks: dict[int, list[Position]]) -> list[dict[str, Any]]:
    """As it is recorded: ranks at the same position together, groups in which some wait first."""
    together: dict[Position, list[int]] = {}
    longest: dict[Position, float] = {}
    for rank, found in ranks.items():
        for each in found:
            same = each._replace(waiting=None if each.waiting is None else 0.0)
            together.setdefault(same, []).append(rank)
            longest[same] = max(longest.get(same, 0.0), each.waiting or 0.0)
    groups: dict[str, list[dict[str, Any]]] = {}
    for position, members in together.items():
        row = {"ranks": members, **position._asdict()}
        row["waiting"] = None if position.waiting is None else longest[position]
        groups.setdefault(row.pop("group"), []).append(row)
    listed: list[dict[str, Any]] = [{"group": name, "at": rows} for name, rows in groups.items()]
    listed.sort(key=lambda group: all(row["waiting"] is None for row in group["at"]))
    return listed[:MAX_GROUPS]


def _text(value: Any) -> str:
    return "".join(filter(str.isprintable, str(value)))[:_MAX_TEXT]
