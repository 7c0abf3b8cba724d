"""Observes and disturbs ranks for tests and soaks: preloaded into rank_server.py, no effect without
its environment variables.

OBSERVE=FOLDER: write the sample ids and the noise of every micro-batch that the loader delivers to
FOLDER/rank-N.jsonl; after the last step, those of LOOK_AHEAD_STEPS more.
PATIENCE=SECONDS: in place of stop.STUCK_SECONDS.
SLOW=SECONDS: every batch takes so much longer.
POISON=RANK:COUNT: that rank's gradient is nan at its COUNT-th micro-batch, its loss is not.
KILL=RANK:PLACE:COUNT: that rank dies by SIGKILL when it comes to PLACE for the COUNT-th time (from
0): one of the names in `PLACES`, or `files`, any file operation in the run's directory.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import trainyard_trainer.distributed.stop as stop
import trainyard_trainer.evaluate as evaluation
import trainyard_trainer.worker as worker
from tests.support.trainer.crash import die_before
from trainyard_trainer.checkpoint.checkpointer import Checkpointer
from trainyard_trainer.checkpoint.export import Exporter
from trainyard_trainer.data.loader import Loader, MicroBatch, MicroBatches, _Fetcher
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.loop import Loop
from trainyard_trainer.recipes.char_gpt import CharGPT

LOOK_AHEAD_STEPS = 20
_SEEN = "ids and noise"  # travels with the batch, also out of the loader's workers


def observed() -> str | None:
    return os.environ.get("OBSERVE")


_fetch, _next = _Fetcher.__getitem__, Loader.__next__
_init_loader, _init_micro_batches, _run = Loader.__init__, MicroBatches.__init__, Loop.run


def fetch(fetcher: _Fetcher, micro_batch: MicroBatch) -> Any:
    found = _fetch(fetcher, micro_batch)
    if observed() and isinstance(found, tuple):
        seen = torch.stack(
            [torch.from_numpy(micro_batch.ids), torch.from_numpy(micro_batch.noise.view("i8"))]
        )
        batch, factor = found
        return batch | {_SEEN: seen}, factor
    return found


def init_micro_batches(
    micro_batches: MicroBatches, config: Any, *arguments: Any, **more: Any
) -> None:
    _init_micro_batches(micro_batches, config, *arguments, **more)
    if observed():
        steps = config.max_steps + LOOK_AHEAD_STEPS
        micro_batches.config = config.model_copy(update={"max_steps": steps})


def init_loader(loader: Any, samples: Any, micro_batches: MicroBatches) -> None:
    loader.delivered = micro_batches.start * micro_batches.config.gradient_accumulation_steps
    _init_loader(loader, samples, micro_batches)


def next_batch(loader: Any) -> Any:
    die_at("batch")
    time.sleep(float(os.environ.get("SLOW", "0")))
    batch, factor = _next(loader)
    if folder := observed():
        ids, noise = batch.pop(_SEEN).tolist()
        line = json.dumps({"micro_batch": loader.delivered, "ids": ids, "noise": noise}) + "\n"
        file = os.open(f"{folder}/rank-{rank()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
        loader.delivered += 1
    return batch, factor


def run(loop: Loop, *arguments: Any) -> None:
    _run(loop, *arguments)
    if observed():
        for _ in range(LOOK_AHEAD_STEPS * loop.config.gradient_accumulation_steps):
            next(loop.loader)


def rank() -> str:
    return os.environ.get("RANK", "0")


_times: dict[str, int] = {}


def die_at(place: str) -> None:
    """Die if this is the place and the time."""
    wanted = os.environ.get("KILL", "::").split(":")
    if wanted[:2] != [rank(), place]:
        return
    times = _times.get(place, 0)
    _times[place] = times + 1
    if times == int(wanted[2]):
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(place: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **more: Any) -> Any:
        die_at(place)
        return function(*arguments, **more)

    return wrapped


_write = Checkpointer._write


def write(checkpointer: Checkpointer, *arguments: Any) -> Any:
    # From another thread: the death comes somewhere in the middle of the work.
    threading.Thread(target=die_at, args=("write",), daemon=True).start()
    return _write(checkpointer, *arguments)


def train(job: Any, *arguments: Any) -> Any:
    stop.STUCK_SECONDS = float(os.environ.get("PATIENCE", stop.STUCK_SECONDS))
    target, place, count = (os.environ.get("KILL") or "::").split(":")
    if (target, place) == (rank(), "files"):
        die_before(int(count), job.run_dir)
    return _work(job, *arguments)


_loss = CharGPT.loss


def loss(recipe: CharGPT, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    value = _loss(recipe, model, batch)
    target, _, count = os.environ.get("POISON", "").partition(":")
    if target == rank() and torch.is_grad_enabled():
        _times["loss"] = _times.get("loss", 0) + 1
        if _times["loss"] == int(count):
            # 0, but the root's slope there is infinite.
            return value + (value * 0).sqrt()
    return value


_work = worker.work
_PATCHES: list[tuple[Any, str, Callable[..., Any]]] = [
    (Loader, "__init__", init_loader),
    (Loader, "__next__", next_batch),
    (MicroBatches, "__init__", init_micro_batches),
    (_Fetcher, "__getitem__", fetch),
    (Loop, "run", run),
    (CharGPT, "loss", loss),
    (worker, "work", train),
    (Checkpointer, "_write", write),
    *(
        (owner, name, deadly(place, getattr(owner, name)))
        for place, owner, name in (
            ("gradients", Parallel, "clip_gradients"),
            ("evaluation", evaluation, "on_device"),
            ("save", Checkpointer, "save"),
            ("export", Exporter, "export"),
        )
    ),
]
for _owner, _name, _function in _PATCHES:
    setattr(_owner, _name, _function)
