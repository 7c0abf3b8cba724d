"""Finds the checkpoints that transformers' Trainer and Lightning write: newest complete, and torn.

Neither writes them atomically: a process that is killed leaves one that looks like any other. The
files' ends are looked at, not all their bytes, and nothing in them is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickletools
import re
import threading
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, NamedTuple

LOOK_SECONDS = 10.0
END_SECONDS = 5.0
MAX_ENTRIES = 2000  # of a directory
# Of what is parsed whole: the agent has 25 MiB.
MAX_JSON = 4 << 20
MAX_PICKLE = 4 << 20
TRAINER_NAME = re.compile(r"checkpoint-(\d{1,15})")
LIGHTNING_NAME = re.compile(r"step=(\d{1,15})")
TRAINER_STATE = "trainer_state.json"  # written last; its keys are sorted, and its log is long
GLOBAL_STEP = re.compile(rb'^  "global_step": (\d{1,15}),', re.MULTILINE)
# One of them holds the weights, or what names the files and directories that do.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
    "pytorch_model_fsdp.bin",
    "pytorch_model_fsdp_0",
)


class Found(NamedTuple):
    """A complete checkpoint: its step, the time of its last file, and where it is."""

    step: int
    time: float
    path: Path

    def to_wire(self) -> dict[str, Any]:
        """A CheckpointRef; it has no manifest, so no digest."""
        time = datetime.fromtimestamp(self.time, timezone.utc).isoformat()
        return {"step": self.step, "digest": "", "time": time}


class Survey(NamedTuple):
    """The newest complete checkpoint, and why each torn one is torn: `out/checkpoint-40: ...`."""

    newest: Found | None
    torn: list[str]


def survey(directory: Path) -> Survey:
    """Look into a run's directory and the directories in it."""
    complete, torn = [], []
    for path in _candidates(directory):
        try:
            found = _trainer(path) if path.is_dir() else _lightning(path)
        except _TornError as why:
            torn.append(f"{path.relative_to(directory)}: {why}")
        except Exception:  # it is being removed, can't be read, or isn't what its name says
            continue
        else:
            if found is not None:
                complete.append(found)
    return Survey(max(complete, key=lambda each: each[:2], default=None), torn)


class Follower:
    """Looks again and again, in its own thread: a disk that doesn't answer blocks nothing else."""

    def __init__(self, directory: Path, found: Callable[[Found], None]) -> None:
        """`found` is called with the newest complete checkpoint."""
        self._directory = directory
        self._found = found
        threading.Thread(target=self._follow, name="checkpoints", daemon=True).start()

    def _follow(self) -> None:
        while True:
            self._look()
            time.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        if newest := survey(self._directory).newest:
            self._found(newest)

    def end(self) -> None:
        """Look a last time, for at most END_SECONDS."""
        last = threading.Thread(target=self._look, daemon=True)
        last.start()
        last.join(END_SECONDS)


class _TornError(Exception):
    """Why a checkpoint is not complete."""


def _candidates(directory: Path) -> list[Path]:
    found = []
    folders = [directory]
    for entry in _entries(directory):
        if entry.is_dir() and not TRAINER_NAME.fullmatch(entry.name):
            folders.append(entry)
    for folder in folders:
        for entry in _entries(folder):
            trainer = TRAINER_NAME.fullmatch(entry.name) and entry.is_dir()
            if trainer or (entry.suffix == ".ckpt" and entry.is_file()):
                found.append(entry)
    return sorted(found)


def _entries(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [Path(entry.path) for entry, _ in zip(entries, range(MAX_ENTRIES))]
    return []


def _trainer(directory: Path) -> Found:
    """transformers' Trainer. Raises _TornError."""
    for path in _entries(directory):
        if path.suffix in (".pt", ".pth", ".bin") and path.is_file():
            _check_zip(path)
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        if path.name.endswith(".index.json"):
            for name in set(_json(path).get("weight_map", {}).values()):
                if not (directory / str(name)).exists():
                    raise _TornError(f"{name} is missing")
    if not any((directory / name).exists() for name in WEIGHTS) and not any(
        path.name.startswith("global_step") for path in _entries(directory)
    ):
        raise _TornError("the weights are missing")
    state = directory / TRAINER_STATE
    if not state.exists():
        raise _TornError(f"{TRAINER_STATE} is missing")
    with state.open("rb") as file:
        start = file.read(4096)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        if not file.read().rstrip().endswith(b"}"):
            raise _TornError(f"{TRAINER_STATE} is cut short")
    step = GLOBAL_STEP.search(start)
    if step is None:
        raise _TornError(f"{TRAINER_STATE} has no global_step")
    return Found(int(step[1]), state.stat().st_mtime, directory)


def _lightning(file: Path) -> Found | None:
    """Lightning; None if its step is unknown. Raises _TornError."""
    _check_zip(file)
    step = _global_step(file)
    if step is None and (named := LIGHTNING_NAME.search(file.name)):
        step = int(named[1])
    return None if step is None else Found(step, file.stat().st_mtime, file)


def _global_step(file: Path) -> int | None:
    """The number after the key "global_step", read from the pickle's opcodes; none is run."""
    # Of whatever kind a file that isn't torch's raises.
    with contextlib.suppress(Exception), zipfile.ZipFile(file) as each:
        name = next(name for name in each.namelist() if name.endswith("data.pkl"))
        if each.getinfo(name).file_size > MAX_PICKLE:
            return None
        expected = False
        for opcode, argument, _ in pickletools.genops(each.read(name)):
            if expected and isinstance(argument, int) and "INT" in opcode.name:
                return argument if 0 <= argument < 2**53 else None
            if "PUT" not in opcode.name and opcode.name != "MEMOIZE":
                expected = argument == "global_step"
    return None


def _check_zip(path: Path) -> None:
    """torch's files are zip archives, whose directory is at the end; older ones are not."""
    with path.open("rb") as file:
        start = file.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise _TornError(f"{path.name} is cut short")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            raise _TornError(f"{path.name} is cut short")
        if length > MAX_JSON:
            return
        try:
            header = json.loads(file.read(length))
            parts = [each for name, each in header.items() if name != "__metadata__"]
            end = max((int(part["data_offsets"][1]) for part in parts), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise _TornError(f"{path.name} is cut short") from None
    if size < 8 + length + end:
        raise _TornError(f"{path.name} is cut short")


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _TornError(f"{path.name} is cut short") from None
    return found if isinstance(found, dict) else {}
