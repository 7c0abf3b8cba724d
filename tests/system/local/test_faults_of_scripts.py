"""Scripts of a user's own that fail: the root cause is named; once it is fixed the run succeeds."""

import os
import textwrap
from typing import Any

import pytest

from tests.faults.corpus import Fault
from tests.system.local.life import Life, local_cases

PRELUDE = """\
import os, signal, sys
rank = int(os.environ["RANK"])

def join():
    import torch.distributed as dist
    dist.init_process_group("gloo")

def meet():
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))

"""
CASES = local_cases("script")
STOPPING = [fault for fault in CASES if fault.row.then == "stop"]
RESTARTING = [fault for fault in CASES if fault.row.then == "restart"]


def script_of(fault: Fault) -> str:
    assert fault.case.local
    return fault.case.local.script


def test_a_script_is_fixed_until_it_runs(box: Any) -> None:
    life = Life(box, "script", recipe=None, config=None, command=["train.py"], maxRestarts=1)
    attempt = 0
    for attempt, fault in enumerate(STOPPING, start=1):
        box.script("train.py", PRELUDE + script_of(fault))
        life.apply() if attempt == 1 else life.retry()
        life.has_stopped_by(fault.name)
        assert life.status["attempt"] == attempt
    # Those that are tried again fail in one attempt each, and the last attempt ends well.
    text = PRELUDE + 'attempt = os.environ["TORCHELASTIC_RUN_ID"].rpartition("-")[2]\n'
    for number, fault in enumerate(RESTARTING, start=attempt + 1):
        text += f'if attempt == "{number}":\n' + textwrap.indent(script_of(fault), "    ")
    box.script("train.py", text)
    life.change(maxRestarts=len(RESTARTING))
    life.apply()
    assert life.status["phase"] == "Succeeded", life.said
    for number, fault in enumerate(RESTARTING, start=attempt + 1):
        life.has_restarted_after(fault.name, number)


@pytest.mark.parametrize("fault", local_cases("command"), ids=str)
def test_a_missing_program_is_installed(box: Any, fault: Fault) -> None:
    assert fault.case.local
    (program,) = fault.case.local.command
    life = Life(box, "missing", recipe=None, config=None, command=[program])
    path = {"PATH": f"{box.path}:{os.environ['PATH']}"}
    life.apply(**path)
    life.has_stopped_by(fault.name)
    box.script(program, "#!/usr/bin/env python3\n")
    life.retry(**path)
    assert life.status["phase"] == "Succeeded", life.said
