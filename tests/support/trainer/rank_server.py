"""Starts trainer ranks by forking a process that has torch loaded: real processes, without the
seconds each would spend importing.

One JSON request a line on stdin, one JSON answer a line on stdout:
{"start": {"argv", "env", "out", "err", "picture", "max_file_bytes"}} -> {"pid"};
with "script" a script of somebody's own, in place of the trainer;
{"import": [MODULES]} -> {}: loads what later runs would each load;
{"poll": [PIDS]} -> {"PID": exit status or null}.
"""

import atexit
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from typing import Any

from trainyard_trainer.__main__ import main, prepare_torch

prepare_torch()  # before torch is imported, as the trainer itself does

# ruff: noqa: E402
import torch._dynamo  # FSDP needs it; test_deferred_dynamo.py and torchrun start without
import torch.distributed.checkpoint
import torch.distributed.fsdp  # noqa: F401

import trainyard_trainer.recipes.char_gpt
import trainyard_trainer.worker  # noqa: F401
from tests import patience
from trainyard_trainer.reporting import history
from trainyard_trainer.reporting.history import History
from trainyard_trainer.reporting.timing import Stragglers


def start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        # Ignored, and inherited so, where the tests were started in a shell's background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path, number in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), number)
        os.environ.update(request["env"])
        if limit := request.get("max_file_bytes"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if not request.get("picture"):
            History.draw = lambda *_, **__: None  # type: ignore[method-assign]
        if "SLOW_RANK" not in request["env"]:  # on a starved machine any rank may be a straggler
            Stragglers.update = lambda *_, **__: None  # type: ignore[method-assign]
        sys.argv[1:] = request["argv"]
        if script := request.get("script"):
            sys.argv[0] = script
            runpy.run_path(script, run_name="__main__")
            status = 0
        else:
            status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if request.get("script"):
            atexit._run_exitfuncs()  # as at the end of a process that was not forked
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


history.DRAWING_TIMEOUT = patience.SECONDS
for line in sys.stdin:
    message = json.loads(line)
    answer: dict[str, Any] = {}
    for name in message.get("import", ()):
        importlib.import_module(name)
    if "start" in message:
        answer["pid"] = start(message["start"])
    for pid in message.get("poll", ()):
        done, status = os.waitpid(pid, os.WNOHANG)
        answer[str(pid)] = os.waitstatus_to_exitcode(status) if done else None
    print(json.dumps(answer), flush=True)
