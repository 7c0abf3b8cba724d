"""What torch's flight recorder wrote: real dumps of gloo's ranks, and files that are no dumps."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import trainyard_agent
from trainyard_agent import flight
from trainyard_agent.flight import FlightRecorder, Position
from trainyard_lifecycle.agent_output import positions
from trainyard_lifecycle.collectives import find_missing
from trainyard_lifecycle.plan import RankExit, Worker

PROGRAM = Path(trainyard_agent.__file__).parent / "__main__.py"
# NCCL's ranks write their dumps when a collective times out, gloo's only when they are asked to.
# The ten minutes until then are those between the collective and the file's time.
RANK = """
import os, pickle, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace, _dump_fr_trace_file

rank = int(os.environ["RANK"])
store = dist.FileStore(sys.argv[1] + "/store", 3)
dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(minutes=10))
for _ in range(4):
    dist.all_reduce(torch.ones(8))
if rank != 2:
    work = dist.all_reduce(torch.ones(8), async_op=True)
open_ = [True] * 5  # gloo retires a collective some time after it has ended
while sum(open_) > (rank != 2):
    open_ = [not each["retired"] for each in pickle.loads(_dump_fr_trace())["entries"]]
prefix = os.environ["TORCH_FR_DUMP_TEMP_FILE"]
_dump_fr_trace_file(rank, True, True, False)
os.utime(f"{prefix}{rank}", (time.time() + 600, time.time() + 600))
# All have written before torchrun's stand-in ends the others.
open(f"{sys.argv[1]}/done-{rank}", "w").close()
while not all(os.path.exists(f"{sys.argv[1]}/done-{other}") for other in range(3)):
    time.sleep(0.05)
if rank != 2:
    os.abort()
time.sleep(600)
"""
LAUNCHER = """
import os, subprocess, sys, time
ranks = []
for rank in range(3):
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"}
    ranks.append(subprocess.Popen([sys.executable, *sys.argv[1:]], env=env))
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.05)
for rank in ranks:
    rank.terminate()
for rank in ranks:
    rank.wait()
sys.exit(1)
"""


@pytest.mark.slow
def test_the_rank_that_did_not_enter_a_collective_is_named_from_real_dumps(tmp_path: Path) -> None:
    worker, run = tmp_path / "worker", tmp_path / "run"
    worker.mkdir()
    script = tmp_path / "train.py"
    script.write_text(RANK)
    lock = os.open(worker / "lock", os.O_RDWR | os.O_CREAT)
    subprocess.run(
        [
            *(sys.executable, "-I", "-S", str(PROGRAM), str(worker), str(lock)),
            *(sys.executable, "-c", LAUNCHER, str(script), str(tmp_path)),
        ],
        env={**os.environ, "TRAINYARD_RUN_DIR": str(run), "TRAINYARD_ATTEMPT": "2"},
        pass_fds=[lock],
        check=True,
    )
    os.close(lock)
    ending = json.loads((worker / "exit.json").read_text())
    assert {rank["exitCode"] for rank in ending["ranks"]} == {-signal.SIGABRT, -signal.SIGTERM}
    ranks = tuple(RankExit(each["rank"], 0, each["exitCode"]) for each in ending["ranks"])
    collectives = positions(ending["collectives"])
    ended = Worker("r-2-0", 2, 0, "Failed", exit_code=1, ranks=ranks, collectives=collectives)
    failure = find_missing([ended], 3)
    assert failure is not None
    assert re.sub(r"for 6\d\d s", "for 600 s", failure.message) == (
        "r-2-0: rank 2 did not enter all_reduce #5 (train.py:14 <module>), in which ranks 0 and 1"
        " waited for 600 s; rank 2 was last in all_reduce #4 (train.py:12 <module>)"
    )
    kept = run / "flight-recorder" / "attempt-2"
    assert sorted(file.name for file in kept.iterdir()) == ["rank_0", "rank_1", "rank_2"]
    assert pickle.loads((kept / "rank_2").read_bytes())["entries"]


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    old = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "10", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/mine/rank"}
    assert FlightRecorder(old, tmp_path).variables == {}
    assert FlightRecorder({"TORCH_FR_BUFFER_SIZE": "0"}, tmp_path).variables == {
        "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "flight-recorder" / "rank_")
    }


def test_dumps_where_the_user_wants_them_are_read_and_left_there(tmp_path: Path) -> None:
    (tmp_path / "mine3").write_bytes(pickle.dumps(dump(entry(1)), 2))  # of an older attempt
    environment = {
        "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "mine"),
        "TRAINYARD_RUN_DIR": str(tmp_path / "run"),
        "TRAINYARD_ATTEMPT": "1",
    }
    recorder = FlightRecorder(environment, tmp_path)
    (tmp_path / "mine7").write_bytes(pickle.dumps(dump(entry(1)), 2))
    (tmp_path / "mine²").touch()  # no dump
    (group,) = recorder.collect()
    recorder.keep()
    assert (group["group"], group["at"][0]["ranks"]) == ("default_pg", [7])
    assert not (tmp_path / "run").exists()


def entry(seq: int, state: str = "started", **values: Any) -> dict[str, Any]:
    """As ProcessGroupNCCL records it."""
    return {
        "process_group": ("0", "default_pg"),
        "collective_seq_id": seq,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": int((time.time() - 600) * 1e9),
        "state": state,
        "retired": state == "completed",
        "timeout_ms": 600_000,
        "is_p2p": False,
        **values,
    }


def dump(*entries: dict[str, Any]) -> dict[str, Any]:
    ranks = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    return {"version": "2.10", "pg_config": ranks, "pg_status": {}, "entries": list(entries)}


def read(path: Path, document: Any) -> list[Position]:
    file = path / "rank_0"
    file.write_bytes(pickle.dumps(document, 2))
    return flight.positions(file)


def test_a_rank_is_in_the_first_collective_that_has_not_ended(tmp_path: Path) -> None:
    (found,) = read(tmp_path, dump(entry(4, "completed"), entry(5), entry(6, "scheduled")))
    assert (found.group, found.seq, found.op, found.limit) == ("default_pg", 5, "all_reduce", 600)
    assert found.waiting is not None
    assert abs(found.waiting - 600) < 60


def test_a_collective_that_timed_out_has_not_ended_although_it_is_retired(tmp_path: Path) -> None:
    (found,) = read(tmp_path, dump(entry(5, retired=True)))
    assert (found.seq, found.waiting is None) == (5, False)


def test_a_group_without_a_collective_and_messages_between_two_ranks(tmp_path: Path) -> None:
    document = dump(entry(9, is_p2p=True), entry(3, "completed"))
    document["pg_config"]["4"] = {"name": "4", "desc": "mesh_tp", "ranks": "[0, 1]"}
    found = {each.group: (each.seq, each.waiting) for each in read(tmp_path, document)}
    assert found == {"default_pg": (3, None), "mesh_tp 4": (0, None)}


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Runs(), 2),
        pickle.dumps(pytest.raises, 2),
        b"\x80\x02}r\xff\xff\xff\x7f.",  # would reserve 16 GB for a number of the memo
        b"",
        pickle.dumps(dump(entry(1)), 2)[:-20],
        pickle.dumps(dump({}), 2),
        pickle.dumps([1, 2], 2),
        b"x" * (flight.MAX_DUMP + 1),
    ],
)
def test_what_is_no_dump_says_nothing_and_runs_nothing(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rank_0"
    file.write_bytes(data)
    assert flight.positions(file) == []
    assert "warning: " in capfd.readouterr().err
    assert not (tmp_path / "it-ran").exists()
