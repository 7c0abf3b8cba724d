"""What the directory of a run on this machine holds, for the run's page; each part bounded.

RUN/events.jsonl       what happened, newest last
RUN/logs/A-N.log       output of attempt A, node N
DATA/checkpoints/      one directory per step, with a manifest; models/ likewise
DATA/scores/           one file per model, of `trainyard evaluate`
DATA/profiles/         traces of steps
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainyard_api.base import parse_known
from trainyard_api.checkpoint import MANIFEST
from trainyard_api.history import is_finite_number
from trainyard_api.profile import DIRECTORY, known_trace
from trainyard_api.scores import SCORES, Scores
from trainyard_dashboard.run_details import (
    MAX_ITEMS,
    LogTail,
    Part,
    RunEvent,
    Score,
    Stored,
    bounded,
)
from trainyard_storage.checkpoints import InvalidCheckpointError, digest, read_manifest, steps

MAX_STORED = 30  # checkpoints, or models: the newest
MAX_MANIFEST_BYTES = 4 << 20
MAX_SCORES_BYTES = 1 << 20
MAX_EVENT_BYTES = 256 << 10
MAX_EVENT_TEXT = 1000  # characters
MAX_LOG_BYTES = 64 << 10
MAX_LOG_LINES = 400
MAX_LOG_LINE = 2000  # characters
LOG_NAME = re.compile(r"(\d{1,9})-(\d{1,5})")
# What a terminal would interpret: colours and cursor movements.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def read_events(path: Path) -> Part[RunEvent]:
    """The newest events, newest first. Raises OSError."""
    try:
        data, is_cut = tail(path, MAX_EVENT_BYTES)
    except FileNotFoundError:
        return Part()
    events, broken = [], 0
    for line in data.splitlines():
        try:
            entry = bounded(json.loads(line), MAX_EVENT_TEXT)
            event = {name: str(entry.get(name) or "") for name in ("type", "reason", "message")}
            events.append(RunEvent(time=str(entry.get("time") or ""), **event))
        except (ValueError, AttributeError, RecursionError):
            broken += 1
    notes = []
    if is_cut or len(events) > MAX_ITEMS:
        notes.append(f"The newest {min(len(events), MAX_ITEMS)} events.")
    if broken:
        lines = "1 broken line" if broken == 1 else f"{broken} broken lines"
        notes.append(f"Left out: {lines} of {path}.")
    return Part(items=events[::-1][:MAX_ITEMS], note=" ".join(notes))


def log_names(directory: Path) -> Part[str]:
    """The logs as ATTEMPT-NODE: the newest attempt first, its nodes in order."""
    found = []
    if directory.is_dir():
        for path in directory.glob("*.log"):
            if match := LOG_NAME.fullmatch(path.stem):
                found.append((-int(match[1]), int(match[2]), path.stem))
    names = [name for _, _, name in sorted(found)]
    note = "" if names else "No attempt has written a log yet."
    if len(names) > MAX_ITEMS:
        note = f"The first {MAX_ITEMS} of {len(names)} logs in {directory}."
    return Part(items=names[:MAX_ITEMS], note=note)


def read_log(directory: Path, name: str) -> LogTail:
    """The newest lines of a log. Raises OSError."""
    path = directory / f"{name}.log"
    try:
        data, is_cut = tail(path, MAX_LOG_BYTES)
    except FileNotFoundError:
        return LogTail(name=name, note=f"There is no log {name}.")
    text, is_longer = printable(data)
    note = f"The newest lines; all of them are in {path}." if is_cut or is_longer else ""
    return LogTail(name=name, text=text, note=note)


def printable(data: bytes) -> tuple[str, bool]:
    """The newest lines of output as a terminal would show them, and whether older ones are cut."""
    lines = ESCAPES.sub("", data.decode(errors="replace")).replace("\r\n", "\n").split("\n")
    # Of a progress bar, which returns to the start of its line, the last state.
    shown = [CONTROLS.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines]
    cut = [line if len(line) <= MAX_LOG_LINE else line[:MAX_LOG_LINE] + "…" for line in shown]
    newest = cut[-MAX_LOG_LINES - 1 :]  # the last one is empty, or incomplete
    return "\n".join(newest), len(newest) < len(cut)


def read_stored(data: Path, kind: str) -> Part[Stored]:
    """Checkpoints or models (`kind` is their directory), the newest first. Raises OSError."""
    directories = list(steps(data / kind))
    items = []
    for directory in directories[:MAX_STORED]:
        manifest = directory / MANIFEST
        try:
            status = manifest.stat()
        except FileNotFoundError:
            continue  # incomplete, or deleted in the meantime
        items.append(_stored(directory, kind, (status.st_ino, status.st_mtime_ns, status.st_size)))
    more = len(directories) - MAX_STORED
    note = f"The newest {MAX_STORED}; {more} more are in {data / kind}." if more > 0 else ""
    return Part(items=items, note=note)


def read_scores(data: Path) -> Part[Score]:
    """What `trainyard evaluate` has kept beside the models, the newest model's first.

    Raises OSError.
    """
    items, broken = [], 0
    for path in sorted((data / SCORES).glob("step-*.json"), reverse=True)[:MAX_STORED]:
        try:
            with path.open("rb") as file:
                text = file.read(MAX_SCORES_BYTES + 1)
            kept = parse_known(Scores, json.loads(text)) if len(text) <= MAX_SCORES_BYTES else None
        except FileNotFoundError:
            continue  # deleted in the meantime
        except (ValueError, RecursionError):
            kept = None
        if kept is None:
            broken += 1
        else:
            items += _scores(kept)
    notes = [f"The first {MAX_ITEMS} of {len(items)} scores."] if len(items) > MAX_ITEMS else []
    if broken:
        files = "1 broken file" if broken == 1 else f"{broken} broken files"
        notes.append(f"Left out: {files} of {data / SCORES}.")
    return Part(items=items[:MAX_ITEMS], note=" ".join(notes))


def _scores(kept: Scores) -> list[Score]:
    return [
        Score(
            task=task[:MAX_EVENT_TEXT],
            metric=metric[:MAX_EVENT_TEXT],
            value=value,
            error=error if is_finite_number(error := found.errors.get(metric)) else None,
            samples=found.samples,
            complete=found.complete,
            time=found.time.isoformat(),
            step=kept.step,
            digest=kept.digest[:MAX_EVENT_TEXT],
        )
        for task, found in kept.tasks.items()
        for metric, value in found.metrics.items()
        if is_finite_number(value)
    ]


def find_traces(data: Path) -> Part[str]:
    """Paths of traces relative to the run's directory, the newest steps first."""
    found = [
        relative
        for path in (data / DIRECTORY).glob("step-*/rank-*.json.gz")
        if (relative := known_trace(path.relative_to(data).as_posix()))
    ]
    found.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path)], reverse=True)
    return Part(items=found[:MAX_ITEMS])


def tail(path: Path, limit: int) -> tuple[bytes, bool]:
    """The last whole lines of a file within `limit` bytes, and whether others are left out."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - limit)
        file.seek(start)
        data = file.read(limit)
    if start:
        # The first line has lost its beginning, unless there is only one.
        _, end, rest = data.partition(b"\n")
        data = rest if end else data
    return data, start > 0


@lru_cache(maxsize=512)
def _stored(directory: Path, kind: str, version: tuple[int, int, int]) -> Stored:
    """What a manifest says; read once for each `version` (inode, time and size) of it."""
    path = f"{kind}/{directory.name}"
    step = int(directory.name.partition("-")[2])
    if version[2] > MAX_MANIFEST_BYTES:
        problem = f"its {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB"
        return Stored(step=step, path=path, problem=problem)
    try:
        manifest = read_manifest(directory)
        identity = digest(directory)
    except (InvalidCheckpointError, OSError) as error:
        return Stored(step=step, path=path, problem=str(error)[:MAX_EVENT_TEXT])
    metrics: dict[str, Any] = bounded(manifest.metrics, MAX_EVENT_TEXT)
    return Stored(
        step=manifest.step,
        path=path,
        created=manifest.created.isoformat(),
        attempt=manifest.attempt,
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        digest=identity,
        metrics=metrics,
    )
