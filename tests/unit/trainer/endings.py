"""Ranks that fail at a chosen place and end in a chosen order, for test_endings.py: preloaded into
rank_server.py, at rest without its environment variables.

FAILS=RANK:PLACE: that rank fails there, alone: `joining` while the others wait for it in the store,
`a step` with an exception, `memory` as torch does where there is no more, `a sample` that its disk
doesn't give back.
LAST=RANK:FILE: that rank has failed, or is done; it touches FILE.awaited and comes no further until
FILE exists.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.patience import until
from trainyard_trainer.data.loader import MicroBatch, _Fetcher
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.loop import Loop

program: Any = importlib.import_module("trainyard_trainer.__main__")
worker: Any = importlib.import_module("trainyard_trainer.worker")

STEP = 5  # the one that fails

_init, _exit_with, _leave = dist.init_process_group, program.exit_with, worker.leave
_train_step, _fetch = Loop._train_step, _Fetcher.__getitem__


def fails(place: str) -> bool:
    return os.environ.get("FAILS") == f"{os.environ.get('RANK', '0')}:{place}"


def wait_for_turn() -> None:
    last, _, file = os.environ.get("LAST", "").partition(":")
    if last == os.environ.get("RANK", "0"):
        Path(f"{file}.awaited").touch()
        until(Path(file).exists)


def init_process_group(*arguments: Any, **more: Any) -> None:
    if fails("joining"):
        raise ConfigError("something is wrong here")
    _init(*arguments, **more)


def train_step(loop: Loop) -> Any:
    if loop.step == STEP - 1:
        if fails("a step"):
            raise ValueError("a mistake of ours")
        if fails("memory"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte. Buy more")
    return _train_step(loop)


def fetch(fetcher: _Fetcher, micro_batch: MicroBatch) -> Any:
    found: Any = _fetch(fetcher, micro_batch)
    if fails("a sample"):
        return ConfigError("row 7 can't be decoded")
    return found


def exit_with(error: BaseException, rank: int) -> int:
    wait_for_turn()
    status: int = _exit_with(error, rank)
    return status


def leave() -> None:
    wait_for_turn()
    _leave()


for owner, name, function in (
    (dist, "init_process_group", init_process_group),
    (Loop, "_train_step", train_step),
    (_Fetcher, "__getitem__", fetch),
    (program, "exit_with", exit_with),
    (worker, "leave", leave),
):
    setattr(owner, name, function)
